"""Everything a deployed box needs: sessions, image processing, `Predictor`. Imports numpy and Pillow, nothing heavier."""

from runtimes.errors import (
    AnnotationError,
    ArtifactError,
    BackendError,
    CheckpointError,
    DetrError,
    ImageError,
    InputError,
    OutputError,
    VerificationError,
)
from runtimes.metadata import Metadata
from runtimes.predictor import Predictor, open_session
from runtimes.processing.image_processor import DetrFeatureExtractor, DetrImageProcessor
from runtimes.processing.image_processor_fast import DetrImageProcessorFast
from runtimes.processing.images import load_image
from runtimes.results import Detections
from runtimes.segments import Segment, Segmentation
from runtimes.session import Session, TensorSpec

__all__ = [
    "AnnotationError",
    "ArtifactError",
    "BackendError",
    "CheckpointError",
    "Detections",
    "DetrError",
    "DetrFeatureExtractor",
    "DetrImageProcessor",
    "DetrImageProcessorFast",
    "ImageError",
    "InputError",
    "Metadata",
    "OutputError",
    "Predictor",
    "Segment",
    "Segmentation",
    "Session",
    "TensorSpec",
    "VerificationError",
    "load_image",
    "open_session",
]
