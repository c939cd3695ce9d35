"""What a training run tells: lines of a log, and sheets of images."""

import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PROMPTS = (
    *("a cat", "a dog", "an astronaut", "a robot", "a red apple", "a tree", "the moon", "a house"),
    *("a car", "a slice of pizza", "a flower", "a horse", "a spaceship", "a castle", "a guitar", "a mountain"),
    *("a blue apple", "a green cat", "a pink elephant", "a yellow heart", "two cats", "three apples", "four stars"),
    *("five balloons", "a green frog", "qwertz", "a beautiful sunset over the sea", "a happy face"),
    *("a cat next to a dog", "a dog on a skateboard", "a star above a house", "an apple to the left of a banana"),
    *("a dog with sunglasses", "a cat with a crown", "an astronaut riding a horse", "a small bird"),
    *("a red car on a blue background", "a penguin on a green background", "a cat, flat style", "a cat, 3d style"),
)
COLUMNS = 8


class Log:
    """Prints lines with the time since the start, and writes them to a file."""

    def __init__(self, folder, start):
        self.start, self.path = start, Path(folder) / "log"

    def __call__(self, text):
        line = f"{time.monotonic() - self.start:6.1f} s  {text}"
        print(line, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            print(line, file=file)


def decibels(images, originals):
    """Returns the mean peak signal-to-noise ratio of uint8 images."""
    error = np.square(images.astype("float32") - originals.astype("float32")).mean((1, 2, 3)) / 255**2
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))


def sheet(path, images, captions, pairs=()):
    """Writes a sheet of captioned images, and under them rows of others without captions.

    Args:
        path: The .png to write.
        images: uint8 (n, h, w, 3).
        captions: n of them.
        pairs: Lists of uint8 (COLUMNS, h, w, 3), a row each.
    """
    height, width = images.shape[1:3]
    cell, caption = (width + 8, height + 22), ImageFont.load_default(11)
    rows = -(-len(images) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * cell[0], rows * cell[1] + len(pairs) * (height + 4)), "white")
    draw = ImageDraw.Draw(page)
    for i, image in enumerate(images):
        left, top = i % COLUMNS * cell[0], i // COLUMNS * cell[1]
        page.paste(Image.fromarray(image), (left + 4, top))
        draw.text((left + cell[0] / 2, top + height + 3), captions[i][:26], fill="black", font=caption, anchor="ma")
    for row, images in enumerate(pairs):
        for i, image in enumerate(images):
            page.paste(Image.fromarray(image), (i * cell[0] + 4, rows * cell[1] + row * (height + 4)))
    page.save(path)
