"""Reads the images that clients send: base64 or the bytes of a file, never an address or a path."""

import base64
import binascii
import threading
from typing import NamedTuple

from keras_diffusion.images.reading import open_image
from keras_diffusion.serving.problems import Problem

DECODING = threading.Semaphore(2)  # how many images are decoded at a time, each of up to 64 MB
MOST = 16  # images of a request


class Input(NamedTuple):
    """An image that a call starts from.

    Args:
        name: The argument, "image", "mask" or "control".
        content: The bytes of the file.
        size: (width, height) in pixels.
    """

    name: str
    content: bytes
    size: tuple


def read_base64(name, value):
    """Reads an `Input` in base64, with or without a `data:` prefix.

    Raises:
        Problem: If it is no PNG, JPEG or WebP, or is damaged or too large. A URL is none: the server fetches nothing.
    """
    if not isinstance(value, str):
        raise Problem(f"`{name}` must be a str: an image in base64. Received: {type(value).__name__}", param=name)
    head, comma, rest = value.partition(",")
    try:
        content = base64.b64decode(rest if comma and head.startswith("data:") else value, validate=True)
    except (ValueError, binascii.Error) as error:
        message = f"`{name}` must be an image in base64, no URL and no path. Received: {value!r:.60}"
        raise Problem(message, param=name) from error
    return read_image(name, content)


def read_image(name, content):
    """Reads an `Input` from the bytes of a file, which it decodes to see that it is whole.

    Raises:
        Problem: As `read_base64`.
    """
    try:
        with DECODING, open_image(name, content) as image:
            return Input(name, content, image.size)
    except ValueError as error:
        raise Problem(str(error), param=name) from error
