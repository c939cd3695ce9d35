"""Finds the images of a folder and their captions."""

import csv
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from keras_diffusion import arguments
from keras_diffusion.system.paths import absolute

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TABLES = {  # file of captions → its rows as dicts
    "metadata.jsonl": lambda file: (json.loads(line) for line in file if line.strip()),
    "metadata.csv": csv.DictReader,
}
NAME_KEYS = ("file_name", "image", "path")  # what tables call an image, the first that is there
CAPTION_KEYS = ("text", "caption", "prompt")  # and what they call its caption

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """Holds an image's path and its caption, or several captions, of which each example takes one."""

    path: Path
    caption: str | tuple[str, ...]

    @property
    def captions(self):
        return (self.caption,) if isinstance(self.caption, str) else self.caption


def records(folder, caption=None):
    """Lists the images of a folder with their captions.

    The caption of "dog.png" is the text of "dog.txt" beside it; or, in the layout of Hugging Face's image folders, the
    row of "metadata.jsonl" or "metadata.csv" with `file_name` and `text`; or else `caption`.

    Args:
        folder: The folder, with PNG, JPEG or WebP files.
        caption: The caption of images that have none of their own; of a list, each example takes one at random.

    Returns:
        A list of `Record`, sorted by path.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If there is no such folder, it holds no image, an image has no caption, a table is damaged, or it
            names an image that is missing or outside the folder.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"`folder` must be a path to a folder of images. Received: folder={folder!r:.200}")
    if not isinstance(caption, str | None):
        caption = tuple(arguments.texts("caption", caption))
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder of images. Received: folder={str(folder)!r:.200}")
    captions = {path: caption for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    for name in TABLES:
        if (folder / name).is_file():
            captions |= _table(folder, name)
    for path in sorted(folder.glob("*.txt")):
        images = [path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix) in captions]
        if not images:
            logger.warning("%s is ignored: there is no image of this name.", path)
        captions |= dict.fromkeys(images, path.read_text(encoding="utf-8").strip())
    if not captions:
        raise ValueError(
            f"`folder` must hold images, {', '.join(SUFFIXES)}. Received: folder={str(folder)!r:.200} without any"
        )
    if bare := sorted(path.name for path, text in captions.items() if text is None):
        raise ValueError(
            "Every image needs a caption: write it into a .txt file beside the image, into metadata.jsonl, or pass "
            f"`caption` for all. Received: {len(bare)} images without a caption, {', '.join(bare)[:200]}"
        )
    return [Record(path, captions[path]) for path in sorted(captions)]


def counterparts(images, folder):
    """Finds the image of the same name in another folder, such as "edges/dog.png", for each of a list of `Record`.

    Returns:
        A list of paths.

    Raises:
        ValueError: If there is no such folder, or an image has no counterpart.
    """
    folder = absolute(folder, "condition_folder")
    there = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES}
    if missing := [record.path.name for record in images if record.path.stem not in there]:
        raise ValueError(
            "`condition_folder` must hold an image of the same name for each image. "
            f"Received: {str(folder)!r:.200} without those of {', '.join(missing):.200}"
        )
    return [there[record.path.stem] for record in images]


def _table(folder, name):
    """Reads the captions of a table: a dict from paths."""
    captions = {}
    with open(folder / name, encoding="utf-8-sig", newline="") as file:
        try:
            for i, row in enumerate(TABLES[name](file), start=1):
                image, text = (
                    next((row[key] for key in keys if row.get(key)), None) for keys in (NAME_KEYS, CAPTION_KEYS)
                )
                path = folder / image
                if text is not None and path.resolve().is_relative_to(folder.resolve()) and path.is_file():
                    captions[path] = text
                    continue
                raise ValueError(f"row {i} names no image of the folder, or no caption")
        except (AttributeError, OSError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{folder / name} must have a row with `file_name`, an image in this folder, and `text`, its caption, "
                f"for each image. Received: {error!s:.200}"
            ) from error
    return captions
