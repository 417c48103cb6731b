"""Every error this project raises on purpose.

::

    DetrError
    ├── CheckpointError        a checkpoint is missing, damaged, or of another model
    ├── ImageError             an image cannot be read or processed
    ├── AnnotationError        an annotation is malformed
    │   └── DatasetError       images or annotations of a data set are malformed; lists the first ten
    ├── ArtifactError          an exported file is missing, damaged, or not a DETR
    │   └── VerificationError  an exported file disagrees with the checkpoint it came from
    │       └── AttestationError  an engine computes in another precision than its graph
    ├── InputError             an argument is out of its range, or arrays do not fit
    ├── OptionError            an image processor was given an option or a value that it does not know
    ├── BackendError           a runtime, a device or an extra is missing, or failed
    └── OutputError            a result cannot be written

A message says what was wrong, what was expected, and how to mend it, if possible on one line.
"""

from __future__ import annotations


class DetrError(Exception):
    """The base of all errors that the project raises on purpose. The command line prints one line and exits with 1."""


class CheckpointError(DetrError):
    """A checkpoint is missing, damaged, incomplete, or of a model that this project does not know."""


class ImageError(DetrError):
    """An image cannot be read or cannot be processed."""


class AnnotationError(DetrError):
    """An annotation is malformed; the message names the image id and the field."""


class DatasetError(AnnotationError):
    """Images or annotations of a data set are malformed; the message has a line for each of the first ten problems."""


class ArtifactError(DetrError):
    """An exported file is missing, damaged, or not a DETR."""


class VerificationError(ArtifactError):
    """An exported file is not the model that was asked for: it disagrees with its checkpoint by more than the tolerance.

    `--fallback` goes on to its next step after this error and its subclass, and after no other.
    """


class AttestationError(VerificationError):
    """An engine computes in another precision than its graph says, or does not show in which it computes."""


class InputError(DetrError):
    """An argument is out of its range, or arrays do not fit (name, dtype, rank or size)."""


class OptionError(DetrError, ValueError):
    """An image processor was given an option or a value that it does not know; transformers raises ValueError there."""


class BackendError(DetrError):
    """A runtime, device or optional dependency is not available, or it failed while running."""


class OutputError(DetrError):
    """A result cannot be written where it was asked for."""


def missing_extra(package: str, extra: str) -> BackendError:
    """The error for an optional dependency that is not installed, with the command that installs it."""
    return BackendError(f"{package} is not installed; run: pip install 'detr-export[{extra}]'")


def missing_package(package: str, error: ImportError) -> BackendError:
    """The error for another library that a result was to be handed to, with the command that installs it."""
    return BackendError(f"{package} cannot be imported ({first_line(error)}); run: pip install {package}")


def first_line(error: Exception) -> str:
    """The first line of another library's error, or its class if it has no text, for use in one of our messages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
