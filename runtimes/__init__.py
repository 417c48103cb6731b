"""Everything that a deployed machine needs: sessions, image processing, `Predictor`. It imports only numpy and Pillow."""

from detr_export.runtimes.errors import (
    AnnotationError,
    ArtifactError,
    BackendError,
    CheckpointError,
    DetrError,
    ImageError,
    InputError,
    OptionError,
    OutputError,
    VerificationError,
)
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.image_processor import DetrFeatureExtractor, DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.detections import Detection, Detections
from detr_export.runtimes.results.segmentation import Segmentation
from detr_export.runtimes.results.segments import Segment
from detr_export.runtimes.results.tables import Cell, Table
from detr_export.runtimes.session import Session, TensorSpec

__all__ = [
    "AnnotationError",
    "ArtifactError",
    "BackendError",
    "Cell",
    "CheckpointError",
    "Detection",
    "Detections",
    "DetrError",
    "DetrFeatureExtractor",
    "DetrImageProcessor",
    "DetrImageProcessorFast",
    "ImageError",
    "InputError",
    "Metadata",
    "OptionError",
    "OutputError",
    "Predictor",
    "Segment",
    "Segmentation",
    "Session",
    "Table",
    "TensorSpec",
    "VerificationError",
    "load_image",
    "open_session",
]
