"""Reads input images and masks."""

import io
import logging
import os
import struct
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image

from keras_diffusion.arguments import LARGEST_SIDE
from keras_diffusion.images.png import refuse_many_texts
from keras_diffusion.images.resizing import fit, nearest
from keras_diffusion.system.paths import existing_file

FILE_FORMATS = ("PNG", "JPEG", "WEBP")
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error)
ORIENTATION = 0x0112  # of EXIF
TURNS = {  # its value → what brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OPAQUE, SEEN = 255, 128  # of a mask with transparency is repainted where there is more than this
ALLOWED = (
    "a path to a PNG, JPEG or WebP file, a PIL image, or an array of shape (h, w, 3) or (b, h, w, 3), uint8 or floats "
    "from 0 to 1"
)
MASK_WHITE = ("repaint", "keep")

logger = logging.getLogger(__name__)


def read_images(name, value, size=None, how="stretch"):
    """Reads images.

    Files and PIL images are turned as their EXIF orientation says; transparency is laid on white; 16-bit greys are
    scaled. Pillow's warnings, such as those of damaged EXIF data, are logged.

    Args:
        name: What to call the images in errors.
        value: A path to a PNG, JPEG or WebP file; a PIL image; a list of them, all of one size; or an array (h, w, 3)
            or (b, h, w, 3), uint8 or floats in [0, 1].
        size: (height, width) to scale to, None for as they are.
        how: How to scale, see `resizing.fit`.

    Returns:
        A float32 array (b, h, w, 3) in [0, 255]; whole numbers where `value` has 8 bits and is not scaled.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a file is missing, damaged, or not PNG, JPEG or WebP; a side is longer than 4096 pixels; numbers
            are out of range or not finite; or an array has another shape.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError(f"`{name}` must be {ALLOWED}. Received: {name}={value!r:.200}")
    read = [_pixels(name, single) for single in values]
    if len({array.shape[1:] for array in read}) > 1:
        sizes = ", ".join(f"{array.shape[1]}×{array.shape[2]}" for array in read)
        raise ValueError(f"`{name}` must hold images of one size. Received: {sizes}"[:300])
    read = np.concatenate(read)
    return read if size is None else fit(read, size, how).clip(0, 255)


def read_mask(name, value, size, white="repaint", given_size=None, how="stretch"):
    """Reads the mask of an image: what is at least half white there is repainted.

    Args:
        name: What to call the mask in errors.
        value: As in `read_images`, or an array (h, w), (b, h, w), (h, w, 1) or (b, h, w, 1) of bool, whole numbers
            from 0 to 255 or floats in [0, 1]; whole numbers that are 0 and 1 alone are those of a bool. If an image has
            transparency, an array (h, w, 4) of uint8 too, what is more than half opaque is repainted.
        size: (height, width) of the image.
        white: "repaint", or "keep" for the opposite.
        given_size: (height, width) that the image had before it was scaled; a mask of that size is scaled likewise, to
            the nearest pixel.
        how: How the image was scaled, see `resizing.fit`.

    Returns:
        A bool array (1 or b, height, width), true where the image is repainted.

    Raises:
        TypeError: As in `read_images`.
        ValueError: As in `read_images`, and if the mask has another size or nothing in it is repainted.
    """
    chosen = read_white(name, value)
    sizes = {array.shape[1:] for array in chosen}
    if not sizes <= {tuple(size), tuple(given_size or size)}:
        scaled = f", or {given_size[0]}×{given_size[1]} as it was before" if given_size and given_size != size else ""
        raise ValueError(
            f"`{name}` must have the size of the image, {size[0]}×{size[1]} (height × width){scaled}. "
            f"Received: {name} of {' and '.join('×'.join(map(str, shape)) for shape in sorted(sizes))}"[:300]
        )
    chosen = np.concatenate([fit(array, size, how, nearest) for array in chosen])
    chosen = chosen if white == "repaint" else ~chosen
    if not chosen.any(axis=(1, 2)).all():
        raise ValueError(f"`{name}` must be {'white' if white == 'repaint' else 'black'} somewhere, to be repainted.")
    return chosen


def read_white(name, value):
    """Reads what is at least half white in masks as `read_mask` takes them: a list of bool arrays (b, h, w)."""
    several = isinstance(value, list | tuple) and any(map(_is_image, value))
    return [_repainted(name, single) for single in (value if several else [value])]


def _is_image(value):
    return isinstance(value, str | os.PathLike | Image.Image) or hasattr(value, "shape")


def _pixels(name, value):
    """Reads one image, or an array of several, as float32 (b, h, w, 3)."""
    if isinstance(value, str | os.PathLike | Image.Image):
        return _from_pil(name, open_image(name, value))
    if not hasattr(value, "shape"):
        raise TypeError(f"`{name}` must be {ALLOWED}. Received: {name}={value!r:.200}")
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


def _repainted(name, value):
    """Reads one mask, or an array of several, as bool (b, h, w)."""
    array = None if isinstance(value, str | os.PathLike | Image.Image) else np.asarray(value)
    if array is not None and array.ndim == 3 and array.shape[-1] == 4 and array.dtype == "uint8":
        array, value = None, Image.fromarray(array)
    if array is None:
        image = open_image(name, value)
        if image.has_transparency_data:
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
            if alpha.min() < OPAQUE:
                return alpha[None] > SEEN
        return _from_pil(name, image).mean(axis=-1) >= 127.5
    if array.ndim in (3, 4) and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype.kind in "biu" and array.size and array.min() >= 0 and array.max() <= 255:
        array = array.astype("float32" if array.max() <= 1 else "uint8")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 3):
        array = np.repeat(array[..., None], 3, axis=-1)
    return _pixels(name, array).mean(axis=-1) >= 127.5


def open_image(name, source):
    """Opens an image, with the checks of `read_images`.

    Args:
        name: What to call the image in errors.
        source: A path, the bytes of a file, or a PIL image.

    Returns:
        A PIL image, decoded and upright.

    Raises:
        TypeError, ValueError: As in `read_images`.
    """
    if isinstance(source, Image.Image):
        return _decode(name, source, source)
    if isinstance(source, bytes):
        file, source = io.BytesIO(source), f"{len(source)} bytes"
    else:
        try:
            file = existing_file(source, name).open("rb")
        except FileNotFoundError as error:
            raise ValueError(f"`{name}` must be a PNG, JPEG or WebP file. {error}") from error
    with file:
        with _explained(name, source):
            refuse_many_texts(file)
            image = Image.open(file, formats=FILE_FORMATS)
        with image:
            return _decode(name, source, image)


def _decode(name, source, image):
    """Decodes an image that is not too large, and turns it as its EXIF orientation says, if that can be read."""
    _check_size(name, *image.size)
    with _explained(name, source):
        image.load()
        try:
            turn = TURNS.get(image.getexif().get(ORIENTATION))
        except UNREADABLE as error:
            logger.warning("`%s` has EXIF data that is damaged, so it is not turned: %.200s", name, error)
            turn = None
        return image if turn is None else image.transpose(turn)


@contextmanager
def _explained(name, source):
    """Turns Pillow's errors about a source into one of ours, and logs its warnings."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (*UNREADABLE, *BOMBS) as error:
        received = f"{source if isinstance(source, Image.Image) else str(source)!r:.200}"
        message = f"`{name}` must be a PNG, JPEG or WebP file: {error!s:.200}. Received: {name}={received}"
        raise ValueError(message) from error
    for warning in said:
        logger.warning("`%s`: %.200s. Received: %.200r", name, warning.message, source)


def _from_pil(name, image):
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip at 255
        grey = np.asarray(image).astype("float32")
        if not 0 <= grey.min() <= grey.max() <= 65535:
            raise ValueError(
                f"`{name}` must have whole numbers from 0 to 255, or to 65535 for 16 bits. "
                f"Received: {grey.min():g} to {grey.max():g} in {image!r:.200}"
            )
        grey = grey if image.mode == "I" and grey.max() <= 255 else grey / 257
        return np.repeat(grey.round()[None, :, :, None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError(f"`{name}` must have whole numbers; pass floats as an array. Received: {image!r:.200}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    with _explained(name, image):
        return np.asarray(image.convert("RGB")).astype("float32")[None]


def _check_size(name, width, height):
    if not 0 < max(width, height) <= LARGEST_SIDE:
        raise ValueError(
            f"`{name}` must be at most {LARGEST_SIDE} pixels wide and high. Received: an image of {height}×{width}"
        )
