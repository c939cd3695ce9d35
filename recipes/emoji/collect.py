"""Collects what the model "emoji" goes on learning from: single images in one style, and scenes of them.

    PYTHONPATH=recipes/icons python recipes/emoji/collect.py --pack icons.pack --output scenes.npz --scenes 6000

Of each thing there are its images in Noto's style, which the model knows; where there is none, those in other styles.
"""

import argparse
import json

import numpy as np
import pack
from scenes import RECIPES, SIZE
from stock import Stock, describe

STYLE = "noto"
COMPOSED = {recipe: share for recipe, share in RECIPES.items() if recipe.__name__ != "plain"}


def chosen(pictures):
    """Returns the indices of the images that are used."""
    drawn = {name for name, style in zip(pictures.names, pictures.styles, strict=True) if style == STYLE}
    return [
        i
        for i, (name, style) in enumerate(zip(pictures.names, pictures.styles, strict=True))
        if style == STYLE or name not in drawn
    ]


def only(pictures, indices):
    """Returns the `Pictures` of some indices."""
    return type(pictures)(
        *(column[indices] if isinstance(column, np.ndarray) else [column[i] for i in indices] for column in pictures)
    )


def on_white(rgba):
    """Returns uint8 (…, 3) of images with transparent ground."""
    alpha = rgba[..., 3:].astype("float32") / 255
    return np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype("uint8")


def compose(stock, count, seed=0):
    """Returns uint8 (count, 128, 128, 3) and a caption for each."""
    rng, recipes = np.random.default_rng(seed), list(COMPOSED)
    shares = np.array(list(COMPOSED.values())) / sum(COMPOSED.values())
    images, captions = np.empty((count, SIZE, SIZE, 3), "uint8"), []
    while len(captions) < count:
        made = recipes[rng.choice(len(recipes), p=shares)](rng, stock)
        if made:
            images[len(captions)] = np.asarray(made[0].convert("RGB"))
            captions.append(made[1])
    return images, captions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    pictures = pack.load(arguments.pack, workers=arguments.workers)
    indices = chosen(pictures)
    pictures, images = only(pictures, indices), pack.read(arguments.pack)[1]
    labels = [images[i][0] for i in indices]
    images, captions = compose(Stock(pictures.rgba, describe(pictures)), arguments.scenes)
    texts = [*pictures.captions, *([(caption, 1.0)] for caption in captions)]
    np.savez(
        arguments.output,
        images=np.concatenate([on_white(pictures.rgba), images]),
        captions=[json.dumps(choices) for choices in texts],
        labels=labels,
        weights=pictures.weights,
    )
    print(f"{len(pictures.rgba)} images and {len(images)} scenes")


if __name__ == "__main__":
    main()
