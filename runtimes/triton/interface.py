"""What a model in Triton's Python backend takes and gives, and what its configuration tells it.

`detr_export.triton` writes that into `config.pbtxt`, and `python_model` reads it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.tasks import DETECTION, TABLES, TASKS

IMAGE, THRESHOLD = "image", "threshold"  # inputs
PIXELS, ENCODED = "pixels", "encoded"  # forms of the picture
FORMS = (PIXELS, ENCODED)
VARIES = -1  # a dimension of any size


@dataclass(frozen=True)
class Tensor:
    """One input or output, as `config.pbtxt` declares it: without the axis of the batch."""

    name: str
    type: str  # Triton's name: "TYPE_FP32"
    dims: tuple[int, ...]
    optional: bool = False  # whether a request may leave the input out


_NAMES = Tensor("names", "TYPE_STRING", (VARIES,))
_SEGMENTS = (
    Tensor("map", "TYPE_INT32", (VARIES, VARIES)),  # (height, width) of the picture, ids; 0 is no segment
    Tensor("ids", "TYPE_INT32", (VARIES,)),
    Tensor("labels", "TYPE_INT64", (VARIES,)),
    _NAMES,
    Tensor("areas", "TYPE_INT64", (VARIES,)),  # pixels
    Tensor("boxes", "TYPE_INT32", (VARIES, 4)),  # (x_min, y_min, x_max, y_max) in pixels of the picture, maxima exclusive
)
_SCORES = Tensor("scores", "TYPE_FP32", (VARIES,))


def inputs_of(form: str, task: str) -> tuple[Tensor, ...]:
    """The inputs. `pixels` are uint8 (height, width, 3) in RGB order; `encoded` is the content of an image file."""
    image = Tensor(IMAGE, "TYPE_UINT8", (VARIES, VARIES, 3)) if form == PIXELS else Tensor(IMAGE, "TYPE_STRING", (1,))
    if task == "semantic":  # it has no threshold
        return (image,)
    return image, Tensor(THRESHOLD, "TYPE_FP32", (1,), optional=True)


def outputs_of(task: str) -> tuple[Tensor, ...]:
    """The outputs of a task: those of `Detections`, of a `Segmentation` and its segments, or a JSON document of tables."""
    if task == DETECTION:
        boxes = Tensor("boxes", "TYPE_FP32", (VARIES, 4))  # (x_min, y_min, x_max, y_max) in pixels of the picture
        return _SCORES, Tensor("labels", "TYPE_INT64", (VARIES,)), boxes, _NAMES
    if task == TABLES:
        return (Tensor("tables", "TYPE_STRING", (1,)),)
    return _SEGMENTS if task == "semantic" else (*_SEGMENTS, _SCORES)


@dataclass(frozen=True)
class Settings:
    """What the parameters of a configuration tell the model."""

    file: str  # name of the model in the folder of a version
    task: str
    form: str  # of the picture
    threshold: float  # where a request does not say
    device: str
    threads: Optional[int]

    def to_parameters(self) -> dict[str, str]:
        """The parameters, all of them text; `from_parameters` is the inverse."""
        found = {
            "file": self.file,
            "task": self.task,
            "input": self.form,
            "threshold": repr(self.threshold),
            "device": self.device,
        }
        return found if self.threads is None else {**found, "threads": str(self.threads)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Settings:
        """Reads the parameters.

        Raises:
            ArtifactError: one is missing or has no meaning.
        """
        try:
            found = cls(
                parameters["file"],
                parameters["task"],
                parameters["input"],
                float(parameters["threshold"]),
                parameters["device"],
                int(parameters["threads"]) if "threads" in parameters else None,
            )
        except KeyError as error:
            raise ArtifactError(f"config.pbtxt has no parameter {error}; write it again: detr-export triton") from error
        except ValueError as error:
            raise ArtifactError(f"a parameter of config.pbtxt is no number: {error}; correct it") from error
        for name, value, known in (("task", found.task, TASKS), ("input", found.form, FORMS)):
            if value not in known:
                raise ArtifactError(f"the parameter {name} of config.pbtxt is {value!r}; expected one of {', '.join(known)}")
        return found


def digest_parameter(version: int | str) -> str:
    """The parameter that has the SHA-256 of a version's file."""
    return f"sha256.{version}"


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a configuration that Triton hands over as JSON."""
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
