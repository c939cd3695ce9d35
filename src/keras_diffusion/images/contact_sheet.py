"""Puts images on one sheet, for a look at all of them."""

import math
from typing import Any

import numpy as np
from PIL import Image

from keras_diffusion.arguments import LARGEST_BATCH, whole_number
from keras_diffusion.images.reading import read_images

WHITE = 255
WIDEST_GAP = 1024


def contact_sheet(images: Any, columns: int | None = None, gap: int = 4) -> Image.Image:
    """Puts images row by row on a white sheet.

    Args:
        images: What `text_to_image` returns, an array (b, h, w, 3), uint8 or floats in [0, 1]; or a list of arrays, PIL
            images or paths, all of one size.
        columns: Number of columns, 1 to 1024; None makes about as many as rows.
        gap: Width of the space between two images, 0 to 1024 pixels.

    Returns:
        A PIL image, which a notebook shows.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an image cannot be read, the images differ in size, or a number is out of its range.
    """
    images = read_images("images", images).round().astype("uint8")
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else whole_number("columns", columns, 1, LARGEST_BATCH)
    gap = whole_number("gap", gap, 0, WIDEST_GAP)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height + gap, width + gap, 3), WHITE, "uint8")
    cells[:count, :height, :width] = images
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(rows * (height + gap), -1, 3)
    return Image.fromarray(sheet[: len(sheet) - gap, : sheet.shape[1] - gap])
