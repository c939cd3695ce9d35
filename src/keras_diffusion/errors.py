"""Defines the library's own errors; bad arguments raise plain `ValueError` and `TypeError`."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the model stays as it was."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint contains a request that only hostile files make."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is damaged, cut short, or of another kind than it claims."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint belongs to another model.

    Args:
        message: The description of the mismatch, with every name.
        missing: Names of tensors that the model needs and the file lacks.
        unexpected: Names of tensors that the file has and the model lacks.
        mismatched: Names of tensors whose shape, dtype or values do not fit.
    """

    def __init__(self, message, missing=(), unexpected=(), mismatched=()):
        super().__init__(message)
        self.missing, self.unexpected, self.mismatched = list(missing), list(unexpected), list(mismatched)


class DownloadError(OSError):
    """A file cannot be downloaded."""


class IntegrityError(DownloadError):
    """A downloaded file differs from the one that was asked for."""


class OfflineError(DownloadError):
    """A file is missing and downloads are forbidden."""


class NoSpaceError(DownloadError):
    """The disk has no room for a file."""


class NumericalError(ArithmeticError):
    """A stage of the generation, or a step of a training, produces values that are not finite.

    Attributes:
        trainer: After a training in one call, the `Trainer` with what was learned before that step; else None.
    """

    trainer = None


class GenerationCancelled(RuntimeError):
    """A callback stops the generation before its last step."""


class FlaggedImagesError(RuntimeError):
    """The model's `safety` function flags images; none of them is lost or altered.

    Args:
        message: The number of flagged images, and which they are.
        images: All images of the call, uint8 (b, height, width, 3).
        flags: Whether each image was flagged, bool (b,).
    """

    def __init__(self, message, images, flags):
        super().__init__(message)
        self.images, self.flags = images, flags
