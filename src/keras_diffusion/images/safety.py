"""Raises an error if a `safety` function flags images; the images are never changed."""

import numpy as np

from keras_diffusion.errors import FlaggedImagesError


def refuse_flagged(safety, images):
    """Asks a function about images.

    Args:
        safety: Function of images that returns one flag for each, true where it must not be shown.
        images: uint8 (b, height, width, 3); the function gets a copy.

    Raises:
        FlaggedImagesError: If it flags any of them.
        ValueError: If it does not return b flags.
    """
    flags = np.asarray(safety(images.copy()))
    if flags.shape != (len(images),) or flags.dtype != bool:
        raise ValueError(f"`safety` must return {len(images)} bools, one for each image. Received: {flags!r:.200}")
    if flags.any():
        raise FlaggedImagesError(
            f"`safety` flagged {flags.sum()} of {len(images)} images: {np.flatnonzero(flags).tolist()}. "
            "This error has all of them in `images`, and `flags`.",
            images,
            flags,
        )
