"""Measures how often a model draws what its prompt says, and draws contact sheets to look at.

    python recipes/emoji/evaluate.py --preset emoji --dataset emoji.npz --output evaluation/

A picture is right when the training picture nearest to it carries the prompt's label.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
from dataset import load
from PIL import Image, ImageDraw, ImageFont

THUMBNAIL = 24
NUM_LABELS = 200
NUM_STEPS = 25
GUIDANCE_SCALE = 3
BATCH_SIZE = 20

FAMILIAR_PROMPTS = (
    *("red apple", "strawberry", "watermelon", "pizza"),
    *("hamburger", "doughnut", "birthday cake", "hot beverage"),
    *("grinning face", "nerd face", "robot", "ghost"),
    *("cat face", "dog face", "fox", "panda"),
    *("penguin", "frog", "octopus", "tropical fish"),
    *("butterfly", "sunflower", "cactus", "christmas tree"),
    *("red heart", "rainbow", "fire", "rocket"),
    *("sailboat", "soccer ball", "guitar", "crown"),
)
UNSEEN_PROMPTS = (
    *("blue apple", "purple banana", "green strawberry", "blue pizza"),
    *("green heart cat", "purple dog", "pink frog", "yellow octopus"),
    *("blue fire", "red moon", "black sun", "green balloon"),
    *("pirate cat", "robot with sunglasses", "cat with heart", "pink automobile"),
)


# The measure


def evaluation_labels(label_names, count=NUM_LABELS):
    """Returns the indices of a fixed choice of labels: those whose hashes come first."""
    hashes = [hashlib.sha256(name.encode()).digest() for name in label_names]
    return np.sort(sorted(range(len(hashes)), key=hashes.__getitem__)[:count])


def thumbnails(images):
    """Returns float32 (n, 24 * 24 * 3) in [0, 1]: averages over equal areas of uint8 images."""
    rows, columns = area_weights(images.shape[1]), area_weights(images.shape[2])
    averages = [np.einsum("ty,yxc,ux->tuc", rows, i, columns, optimize=True) for i in images]
    return np.reshape(averages, (len(images), -1)) / np.float32(255)


def area_weights(size):
    """Returns (24, size): the share of each of `size` pixels in each of 24 equal intervals."""
    edges = np.linspace(0, size, THUMBNAIL + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * THUMBNAIL / size).astype("float32")


def distances(images, dataset):
    """Returns float32 (n, m): mean squared error of each image to each of m base pictures."""
    base = thumbnails(dataset.images[dataset.base])
    differences = (base - image for image in thumbnails(images))
    return np.stack([np.einsum("mk,mk->m", d, d) for d in differences]) / base.shape[1]


def nearest_label(images, dataset):
    """Returns (n,): the index of the label of the base picture nearest to each image."""
    return dataset.labels[dataset.base][distances(images, dataset).argmin(axis=1)]


def measure(images, labels, dataset):
    """Measures whether images show the labels they were drawn for.

    Two labels may share one picture, so an image's rank is the number of base pictures strictly
    nearer to it than the nearest one of its own label.

    Args:
        images: uint8 (n, height, width, 3).
        labels: (n,) indices into `dataset.label_names`.
        dataset: `Dataset`; only its base pictures are compared with.

    Returns:
        Dict of `labels` (n), `top_1` and `top_5` (percent of ranks below 1 and 5) and `misses`,
        pairs of the names of an image's label and of the nearest picture's label.
    """
    base_labels = dataset.labels[dataset.base]
    errors = distances(images, dataset)
    own = np.where(base_labels == np.asarray(labels)[:, None], errors, np.inf).min(axis=1)
    rank = (errors < own[:, None]).sum(axis=1)
    nearest = base_labels[errors.argmin(axis=1)]
    names = dataset.label_names
    return {
        "labels": len(rank),
        "top_1": 100 * float(np.mean(rank < 1)),
        "top_5": 100 * float(np.mean(rank < 5)),
        "misses": [[names[labels[i]], names[nearest[i]]] for i in np.flatnonzero(rank)],
    }


# Pictures


def generate(model, prompts, seed=0):
    """Returns uint8 (n, height, width, 3): one image per prompt, the i-th with noise seed + i."""
    batches = [
        model.text_to_image(
            list(prompts[start : start + BATCH_SIZE]),
            num_steps=NUM_STEPS,
            unconditional_guidance_scale=GUIDANCE_SCALE,
            seed=seed + start,
        )
        for start in range(0, len(prompts), BATCH_SIZE)
    ]
    return np.concatenate(batches)


def contact_sheet(images, columns, captions=None, scale=1):
    """Returns a PIL image: rows of `columns` images with optional captions underneath."""
    font = ImageFont.load_default(12)
    width, height = images.shape[2] * scale, images.shape[1] * scale
    cell_width, cell_height = (width + 8, height + 22) if captions else (width, height)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = i % columns * cell_width, i // columns * cell_height
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (left + (cell_width - width) // 2, top))
        if captions:
            middle = (left + cell_width / 2, top + height + 4)
            draw.text(middle, captions[i], fill="black", font=font, anchor="ma")
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True, help="name or folder of the model")
    parser.add_argument("--dataset", required=True, help="the .npz that dataset.py wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from keras_diffusion import StableDiffusion  # the measure itself needs no Keras

    dataset = load(arguments.dataset)
    model = StableDiffusion.from_preset(arguments.preset)
    arguments.output.mkdir(parents=True, exist_ok=True)

    base_names = dataset.label_names[: dataset.labels[dataset.base].max() + 1]
    labels = evaluation_labels(base_names)
    start = time.perf_counter()
    images = generate(model, [base_names[label] for label in labels], arguments.seed)
    settings = {
        "preset": arguments.preset,
        "num_steps": NUM_STEPS,
        "unconditional_guidance_scale": GUIDANCE_SCALE,
        "seed": arguments.seed,
        "seconds_per_image": (time.perf_counter() - start) / len(images),
    }
    result = settings | measure(images, labels, dataset)
    (arguments.output / "measure.json").write_text(json.dumps(result, indent=2) + "\n")
    contact_sheet(images, columns=20).save(arguments.output / "labels.png")
    for name, prompts in (("familiar", FAMILIAR_PROMPTS), ("unseen", UNSEEN_PROMPTS)):
        images = generate(model, prompts, arguments.seed)
        sheet = contact_sheet(images, 8, captions=prompts, scale=2)
        sheet.save(arguments.output / f"{name}.png")
    print(f"top-1 {result['top_1']:.1f} %, top-5 {result['top_5']:.1f} % of {len(labels)} labels")


if __name__ == "__main__":
    main()
