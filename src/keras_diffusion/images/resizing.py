"""Scales, cuts and extends images and masks."""

import numpy as np
from PIL import Image

HOW = ("stretch", "crop", "pad")


def fit(images, size, how="stretch", scale=None):
    """Brings images to a size.

    Args:
        images: float32 (b, h, w, 3); or another array (b, h, w, …) with a `scale` for it.
        size: (height, width).
        how: "stretch" scales both sides alike or not; "crop" keeps the proportions and cuts off what is too much, on
            both sides alike; "pad" keeps them and repeats the pixels of the edges where there is too little.
        scale: Function of images and a size that scales them; None is `resize`.

    Returns:
        The images (b, height, width, …).
    """
    given = images.shape[1:3]
    if given == tuple(size):
        return images
    ratios = [new / old for new, old in zip(size, given, strict=True)]
    ratio = {"crop": max, "pad": min}.get(how, lambda _: None)(ratios)
    scaled_size = tuple(size) if ratio is None else tuple(max(1, round(old * ratio)) for old in given)
    images = images if scaled_size == given else (scale or resize)(images, scaled_size)
    for axis, new in enumerate(size, start=1):
        missing = new - images.shape[axis]
        before = abs(missing) // 2
        if missing < 0:
            images = np.take(images, np.arange(before, before + new), axis=axis)
        borders = [(0, 0)] * images.ndim
        borders[axis] = (before, missing - before) if missing > 0 else (0, 0)
        images = np.pad(images, borders, mode="edge")
    return images


def resize(images, size):
    """Scales float images (b, h, w, c) to `size`, (height, width), with Lanczos' filter of length 3."""
    height, width = size

    def channel(plane):
        return np.asarray(Image.fromarray(plane, "F").resize((width, height), Image.Resampling.LANCZOS))

    planes = np.moveaxis(np.asarray(images, "float32"), -1, 1)
    scaled = [[channel(np.ascontiguousarray(plane)) for plane in image] for image in planes]
    return np.moveaxis(np.array(scaled), 1, -1)


def nearest(images, size):
    """Scales arrays (b, h, w, …) to `size`, taking of each new pixel what is at its middle."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, images.shape[1:3], strict=True)
    )
    return images[:, rows][:, :, columns]


def pad(images: np.ndarray, top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Extends images (b, h, w, 3), or one of (h, w, 3), by pixels like those at their edges.

    Args:
        images: The images, of any dtype.
        top: Number of rows to add above, at least 0.
        bottom: Number of rows to add below, at least 0.
        left: Number of columns to add on the left, at least 0.
        right: Number of columns to add on the right, at least 0.

    Returns:
        The images (b, h + top + bottom, w + left + right, 3), of the same dtype, and the mask of what is new, bool
        (1, …).

    Raises:
        ValueError: If the images have another shape or a number is negative.
    """
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or min(top, bottom, left, right) < 0:
        raise ValueError(
            "`images` must be of shape (b, h, w, 3) or (h, w, 3), extended by at least 0 pixels on each side. "
            f"Received: shape {images.shape}, {top=}, {bottom=}, {left=}, {right=}"
        )
    borders = ((0, 0), (top, bottom), (left, right))
    extended = np.pad(images, (*borders, (0, 0)), mode="edge")
    return extended, np.pad(np.zeros((1, *images.shape[1:3]), bool), borders, constant_values=True)


def bicubic(planes, size):
    """Samples float planes (b, h, w) at the places of a grid of `size`, by cubic convolution without smoothing.

    Source: Keys 1981, "Cubic convolution interpolation", with the factor -0.75 of `torch.nn.functional.interpolate`.
    """
    rows, columns = (_cubic_weights(new, old) for new, old in zip(size, planes.shape[1:], strict=True))
    return (rows @ planes @ columns.T).astype("float32")


def _cubic_weights(new, old):
    """A matrix (new, old) that samples a line; beyond its ends are its first and last values."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(places)[:, None] + np.arange(-1, 3)
    x, factor = np.abs(places[:, None] - taps), -0.75
    near = ((factor + 2) * x - (factor + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * factor - 4 * factor
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights
