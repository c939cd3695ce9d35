"""Draws class images by the model itself, for prior preservation (Ruiz et al. 2023, "DreamBooth", arXiv:2208.12242)."""

from pathlib import Path

from PIL import Image

from keras_diffusion import arguments
from keras_diffusion.system.paths import absolute, new_file
from keras_diffusion.training.folder import SUFFIXES

AT_ONCE = 4  # images that are drawn together
MOST = 10_000


def draw_missing(model, folder, caption, count, seed=0):
    """Draws images of a class until a folder holds `count` of them, so that a training that is repeated draws none.

    Args:
        model: The `StableDiffusion`, before it is trained.
        folder: The folder; it may be new.
        caption: What to draw, such as "a photo of a dog".
        count: Number of images in the folder.
        seed: Image i takes seed + i.
    """
    if not isinstance(caption, str):
        raise TypeError(f"`class_caption` must be a str. Received: class_caption={caption!r:.200}")
    count, folder = arguments.whole_number("class_images", count, 1, MOST), absolute(folder, "class_folder")
    there = sum(path.suffix.lower() in SUFFIXES for path in folder.glob("*"))
    for first in range(there, count, AT_ONCE):
        size = min(AT_ONCE, count - first)
        for i, image in enumerate(model.text_to_image(caption, batch_size=size, seed=seed + first), start=first):
            with new_file(Path(folder) / f"class-{seed + i}.png", overwrite=True) as path:
                Image.fromarray(image).save(path, "PNG")
