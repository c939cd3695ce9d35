"""Pictures that people pass in, as numbers: the image an image starts from, and the mask of what is repainted."""

import os
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

from keras_diffusion.arguments import LARGEST_SIDE, shorten

FILE_FORMATS = ("PNG", "JPEG", "WEBP")
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError, Warning)
ALLOWED = (
    "a path to a PNG, JPEG or WebP file, a PIL image, or an array of shape (h, w, 3) or (b, h, w, 3), uint8 or floats "
    "from 0 to 1"
)
MASK_WHITE = ("repaint", "keep")


def pictures(name, value, size=None):
    """Reads pictures.

    Files are turned as their EXIF orientation says; transparency is laid on white; 16-bit greys are scaled.

    Args:
        name: What to call the pictures in errors.
        value: A path to a PNG, JPEG or WebP file; a PIL image; a list of them, all of one size; or an array (h, w, 3)
            or (b, h, w, 3), uint8 or floats in [0, 1].
        size: (height, width) to scale to, None for as they are.

    Returns:
        A float32 array (b, h, w, 3) in [0, 255]; whole numbers where `value` has 8 bits and is not scaled.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a file is missing, damaged, or not PNG, JPEG or WebP; a side is longer than 4096 pixels; numbers
            are out of range or not finite; or an array has another shape.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError(f"`{name}` must be {ALLOWED}. Received: {name}={shorten(value)}")
    read = [_picture(name, single) for single in values]
    if len({array.shape[1:] for array in read}) > 1:
        sizes = ", ".join(f"{array.shape[1]}×{array.shape[2]}" for array in read)
        raise ValueError(f"`{name}` must hold pictures of one size. Received: {sizes}"[:300])
    read = np.concatenate(read)
    return read if size is None or size == read.shape[1:3] else resize(read, size)


def mask(name, value, size, white="repaint"):
    """Reads the mask of an image: what is at least half white there is repainted.

    Args:
        name: What to call the mask in errors.
        value: As in `pictures`, or an array (h, w) or (b, h, w) of bool, uint8 or floats in [0, 1]; whole numbers that
            are 0 and 1 alone are those of a bool.
        size: (height, width) of the image.
        white: "repaint", or "keep" for the opposite.

    Returns:
        A bool array (1 or b, height, width), true where the image is repainted.

    Raises:
        TypeError: As in `pictures`.
        ValueError: As in `pictures`, and if the mask has another size or nothing in it is repainted.
    """
    array = None if isinstance(value, str | os.PathLike | Image.Image) else np.asarray(value)
    if array is not None and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 3)):
        if array.dtype.kind in "biu" and array.size and array.max() <= 1:
            array = array.astype("float32")
        value = np.repeat(array[..., None], 3, axis=-1)
    chosen = pictures(name, value).mean(axis=-1) >= 127.5
    if chosen.shape[1:] != tuple(size):
        raise ValueError(
            f"`{name}` must have the size of the image, {size[0]}×{size[1]} (height × width). "
            f"Received: {name} of {chosen.shape[1]}×{chosen.shape[2]}"
        )
    chosen = chosen if white == "repaint" else ~chosen
    if not chosen.any(axis=(1, 2)).all():
        raise ValueError(f"`{name}` must be {'white' if white == 'repaint' else 'black'} somewhere, to be repainted.")
    return chosen


def resize(images, size):
    """Scales float images (b, h, w, c) to `size`, (height, width), with Lanczos' filter of length 3."""
    height, width = size

    def channel(plane):
        return np.asarray(Image.fromarray(plane, "F").resize((width, height), Image.Resampling.LANCZOS))

    planes = np.moveaxis(np.asarray(images, "float32"), -1, 1)
    scaled = [[channel(np.ascontiguousarray(plane)) for plane in image] for image in planes]
    return np.moveaxis(np.array(scaled), 1, -1)


def pad(images: np.ndarray, top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Extends images (b, h, w, 3) by pixels like those at their edges.

    Returns:
        The images (b, h + top + bottom, w + left + right, 3), of the same dtype, and the mask of what is new, bool
        (1, …).
    """
    borders = ((0, 0), (top, bottom), (left, right))
    extended = np.pad(images, (*borders, (0, 0)), mode="edge")
    return extended, np.pad(np.zeros((1, *images.shape[1:3]), bool), borders, constant_values=True)


def _picture(name, value):
    """One picture, or an array of several, as float32 (b, h, w, 3)."""
    if isinstance(value, str | os.PathLike):
        return _from_file(name, value)
    if isinstance(value, Image.Image):
        return _from_pil(name, value)
    if not hasattr(value, "shape"):
        raise TypeError(f"`{name}` must be {ALLOWED}. Received: {name}={shorten(value)}")
    array = np.asarray(value)
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"`{name}` must be {ALLOWED}. Received: an array of shape {array.shape}")
    _check_size(name, array.shape[-2], array.shape[-3])
    if array.dtype == "uint8":
        array = array.astype("float32")
    elif array.dtype.kind == "f":
        array = array.astype("float32") * np.float32(255)
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 255):
            low, high = array.min() / 255, array.max() / 255
            raise ValueError(f"`{name}` must be floats from 0 to 1. Received: an array from {low:g} to {high:g}")
    else:
        raise ValueError(f"`{name}` must be uint8 or floats from 0 to 1. Received: an array of dtype {array.dtype}")
    return array.reshape(-1, *array.shape[-3:])


def _from_file(name, path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=FILE_FORMATS) as image:
                _check_size(name, *image.size)
                return _from_pil(name, ImageOps.exif_transpose(image))
    except DAMAGED as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"{error!s:.200}"
        message = f"`{name}` must be a PNG, JPEG or WebP file: {reason}. Received: {name}={str(path)!r:.200}"
        raise ValueError(message) from error


def _from_pil(name, image):
    _check_size(name, *image.size)
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip at 255
        grey = np.asarray(image).astype("float32") / 257
        return np.repeat(grey.clip(0, 255).round()[None, :, :, None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError(f"`{name}` must have whole numbers; pass floats as an array. Received: {image!r:.200}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB")).astype("float32")[None]


def _check_size(name, width, height):
    if not 0 < max(width, height) <= LARGEST_SIDE:
        raise ValueError(
            f"`{name}` must be at most {LARGEST_SIDE} pixels wide and high. Received: a picture of {height}×{width}"
        )
