"""The library's own errors. Bad arguments are plain `ValueError` and `TypeError`."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the model is as it was."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for something that only hostile files ask for."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is damaged, cut short, or not what it says it is."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint belongs to another model.

    Args:
        message: What is wrong, with every name.
        missing: Names of tensors that the model needs and the file lacks.
        unexpected: Names of tensors that the file has and the model lacks.
        mismatched: Names of tensors whose shape, dtype or values do not fit.
    """

    def __init__(self, message, missing=(), unexpected=(), mismatched=()):
        super().__init__(message)
        self.missing, self.unexpected, self.mismatched = list(missing), list(unexpected), list(mismatched)


class DownloadError(OSError):
    """A file could not be fetched."""


class IntegrityError(DownloadError):
    """A fetched file is not the one that was asked for."""


class OfflineError(DownloadError):
    """A file is not at hand and the network may not be used."""


class NoSpaceError(DownloadError):
    """There is no room for a file."""


class NumericalError(ArithmeticError):
    """A stage of the generation produced values that are not finite."""


class GenerationCancelled(RuntimeError):
    """The generation was stopped before its last step."""


class FlaggedImagesError(RuntimeError):
    """The model's `safety` function flagged images. None of them is lost or altered.

    Args:
        message: How many, and which.
        images: All images of the call, uint8 (b, height, width, 3).
        flags: Which of them were flagged, bool (b,).
    """

    def __init__(self, message, images, flags):
        super().__init__(message)
        self.images, self.flags = images, flags
