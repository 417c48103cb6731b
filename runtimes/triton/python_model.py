"""`TritonPythonModel`: the class that Triton's Python backend makes and calls, around a `Predictor`.

`model.py` in a repository imports it. Triton starts a process for each instance, which has `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import triton_python_backend_utils as pb_utils

from detr_export.runtimes.devices import CPU, OPENVINO, parse_device
from detr_export.runtimes.errors import ArtifactError, BackendError, DetrError, ImageError, InputError, first_line
from detr_export.runtimes.files import require_regular, sha256_of_file
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.triton.answering import Answer, Question, answer_all
from detr_export.runtimes.triton.interface import (
    ENCODED,
    IMAGE,
    THRESHOLD,
    Settings,
    digest_parameter,
    outputs_of,
    parameters_of,
)

_GPU = "GPU"  # what Triton calls an instance on a GPU


class TritonPythonModel:
    """One instance of a model."""

    _predictor: Optional[Predictor] = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the model of a version.

        Args:
            args: what Triton says of the instance: its configuration as JSON, folder, version, kind and GPU.

        Raises:
            TritonModelException: the configuration or the file is not usable.
        """
        try:
            _require_numpy()
            parameters = parameters_of(json.loads(args["model_config"]))
            self._settings = Settings.from_parameters(parameters)
            file = Path(args["model_repository"]) / args["model_version"] / self._settings.file
            _require_digest(file, parameters.get(digest_parameter(args["model_version"])))
            self._predictor = Predictor.load(file, device_of(self._settings.device, args), self._settings.threads)
        except DetrError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers requests: a response for each, in their order. Triton batched them."""
        assert self._predictor is not None
        read = [self._read(request) for request in requests]
        good = [question for question in read if isinstance(question, Question)]
        answers = iter(answer_all(self._predictor, self._settings.task, good))
        return [self._response(next(answers) if isinstance(item, Question) else item) for item in read]

    def finalize(self) -> None:
        """Closes the model."""
        if self._predictor is not None:
            self._predictor.close()
            self._predictor = None

    def _read(self, request: Any) -> Union[Question, InputError]:
        image = pb_utils.get_input_tensor_by_name(request, IMAGE).as_numpy()
        if len(image) != 1:
            return InputError(f"the request has {len(image)} pictures; expected one: the server makes batches of requests")
        threshold = pb_utils.get_input_tensor_by_name(request, THRESHOLD)
        return Question(
            bytes(image.reshape(-1)[0]) if self._settings.form == ENCODED else image[0],
            self._settings.threshold if threshold is None else float(threshold.as_numpy().reshape(-1)[0]),
        )

    def _response(self, answer: Answer) -> Any:
        if isinstance(answer, Exception):
            return pb_utils.InferenceResponse(error=_error_of(answer))
        tensors = [pb_utils.Tensor(item.name, answer[item.name][np.newaxis]) for item in outputs_of(self._settings.task)]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def device_of(name: str, args: Mapping[str, str]) -> str:
    """The device of an instance. A name with a GPU but no number is the GPU that Triton gives the instance.

    Args:
        name: of the device, as the configuration has it.
        args: what Triton says of the instance.

    Raises:
        BackendError: there is no such device.
    """
    if parse_device(name).kind in (CPU, OPENVINO) or ":" in name or args.get("model_instance_kind") != _GPU:
        return name
    return f"{name}:{args['model_instance_device_id']}"


def _require_numpy() -> None:
    """Refuses a backend that was built before NumPy 2 and runs with it: its arrays have no strides, so all pixels are one.

    Raises:
        BackendError: says what helps.
    """
    numbers = np.arange(1, 4, dtype=np.float32)
    copied = pb_utils.Tensor.from_dlpack("copied", pb_utils.Tensor("numbers", numbers))
    if not np.array_equal(copied.as_numpy(), numbers):
        raise BackendError(
            f"this Triton's Python backend was built for NumPy 1 and garbles the arrays of NumPy {np.__version__}; install "
            "numpy<2 in the server's Python, or take a newer Triton"
        )


def _require_digest(file: Path, wanted: Optional[str]) -> None:
    require_regular(file, ArtifactError)
    if wanted is None:
        raise ArtifactError(
            f"config.pbtxt has no SHA-256 of {file}; add the version with: detr-export triton --version {file.parent.name}"
        )
    if sha256_of_file(file) != wanted:
        raise ArtifactError(f"{file} is not the file that config.pbtxt names (its SHA-256 differs); add it as a new version")


def _error_of(error: Exception) -> Any:
    """The error of one request: its message, and whose fault it was."""
    if isinstance(error, (ImageError, InputError)):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    message = str(error) if isinstance(error, DetrError) else f"{type(error).__name__}: {first_line(error)}"
    return pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
