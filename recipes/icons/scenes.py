"""Makes captioned scenes of 128×128 from pictures.

`make(pictures, count, seed)` makes many in parallel; `scene(rng, stock)` makes one.
"""

import json
import tempfile
from pathlib import Path

import compositions as c
import numpy as np
from layouts import SIZE
from stock import Stock, describe
from workers import run

RECIPES = {
    **{c.plain: 0.51, c.painted: 0.11, c.counted: 0.09, c.beside: 0.08, c.above: 0.04, c.on_top: 0.05},
    **{c.inside: 0.01, c.holding: 0.015, c.dressed: 0.025, c.grounded: 0.05, c.sized: 0.02},
}


def scene(rng, stock):
    """Returns a scene as (uint8 (128, 128, 3), caption).

    Args:
        rng: `numpy.random.Generator`.
        stock: A `Stock` of pictures.
    """
    recipe = list(RECIPES)[rng.choice(len(RECIPES), p=list(RECIPES.values()))]
    made = None
    while made is None:
        made = recipe(rng, stock)
    canvas, caption = made
    return np.asarray(canvas.convert("RGB")), caption


def make_part(task):
    """Returns (uint8 (count, 128, 128, 3), captions) of scenes; what `make` runs in each process."""
    folder, count, seed = task
    rgba = np.load(Path(folder) / "rgba.npy", mmap_mode="r")
    stock = Stock(rgba, json.loads((Path(folder) / "pictures.json").read_text()))
    rng = np.random.default_rng(seed)
    images, captions = np.empty((count, SIZE, SIZE, 3), np.uint8), []
    for image in images:
        image[:], caption = scene(rng, stock)
        captions.append(caption)
    return images, captions


def make(pictures, count, seed, workers=16):
    """Makes scenes in parallel processes.

    Args:
        pictures: The `Pictures` of a pack, of 128×128.
        count: Number of scenes.
        seed: An integer; the same seed, count and workers give the same scenes.
        workers: Number of processes.

    Returns:
        (images, captions): uint8 (count, 128, 128, 3) and a list of str.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rgba.npy", pictures.rgba)
        (Path(folder) / "pictures.json").write_text(json.dumps(describe(pictures)))
        counts = [len(part) for part in np.array_split(np.arange(count), workers)]
        tasks = [(folder, part, (seed, i)) for i, part in enumerate(counts)]
        parts = run(make_part, tasks, workers)
    return np.concatenate([images for images, _ in parts]), [text for _, texts in parts for text in texts]
