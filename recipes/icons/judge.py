"""Judges what an image shows: names its objects, counts them, and names their colour.

    python recipes/icons/judge.py --pack icons.pack --output counter.weights.h5

trains the small network that counts, and prints how often the judge is right on real compositions of unseen
combinations.
"""

import argparse
from pathlib import Path

import layouts
import numpy as np
from colours import hsv, hue_name
from PIL import Image
from scipy import ndimage
from stock import Stock, describe, held_out
from unseen import NOUNS, compose, prompts

CROP = 24  # side of the thumbnails by which objects are recognised
SMALL = 32  # side of the images that the counter sees
MOST = 5  # objects that it counts


# Pixels


def visible(image):
    """Returns which pixels of uint8 (height, width, 3) are not white ground."""
    return image.min(-1) < 222


def halves(image, axis):
    """Returns the two parts of an image along an axis, cut where the fewest pixels are visible near the middle."""
    profile = visible(image).sum(1 - axis).astype(float)
    low, high = len(profile) // 4, 3 * len(profile) // 4
    to_middle = np.abs(np.arange(low, high) - len(profile) / 2)
    cut = low + int((ndimage.uniform_filter1d(profile, 5)[low:high] + 1e-3 * to_middle).argmin())
    return np.split(image, [cut], axis=axis)


def crop(image):
    """Returns what an image shows as float32 (CROP * CROP * 3,) in [0, 1], fitted into a white square."""
    mask = visible(image)
    if mask.sum() < 20:
        return np.ones(CROP * CROP * 3, "float32")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    part = layouts.fit(part, CROP, CROP)
    canvas = Image.new("RGB", (CROP, CROP), "white")
    canvas.paste(part, ((CROP - part.width) // 2, (CROP - part.height) // 2))
    return np.asarray(canvas).reshape(-1) / np.float32(255)


def colour_share(image, word):
    """Returns the share of an image's visible pixels that have a colour, outlines in black and white left out."""
    pixels = image[visible(image)].astype("float32") / 255
    if len(pixels) < 20:
        return 0.0
    names = [hue_name(*values) for values in zip(*hsv(pixels[:: max(1, len(pixels) // 800)]), strict=True)]
    counted = [name for name in names if name not in {"black", "white", "grey"} - {word}]
    return sum(name == word for name in names) / max(1, len(names) if word in ("black", "grey") else len(counted))


# The counter


def counter():
    """Returns a Keras model: float (n, SMALL, SMALL, 1), the visible pixels, to logits of 1 to MOST objects."""
    import keras

    layers = [keras.layers.Input((SMALL, SMALL, 1))]
    for width in (16, 32, 64):
        layers += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dropout(0.2), keras.layers.Dense(MOST)]
    return keras.Sequential(layers)


def outline(image):
    """Returns what the counter sees of uint8 (128, 128, 3): how much of each square is visible."""
    side = image.shape[0] // SMALL
    return visible(image).reshape(SMALL, side, SMALL, side, 1).mean((1, 3), dtype="float32")


def examples(rng, stock, size):
    """Returns (outlines, counts - 1) of arrays of objects, of combinations that scenes may show."""
    images, labels = [], []
    while len(images) < size:
        i, count = stock.object(rng), int(rng.integers(1, MOST + 1))
        if held_out("count", count, stock.name(rng, i)):
            continue
        image = np.asarray(layouts.array_of(rng, stock.image(i), count).convert("RGB"))
        if rng.random() < 0.5:  # softer, as a model draws
            image = ndimage.uniform_filter(image, (3, 3, 0))
        images.append(outline(image))
        labels.append(count - 1)
    return np.stack(images), np.array(labels)


def train(model, stock, size=10_000, epochs=12, seed=0):
    """Trains the counter."""
    import keras

    images, labels = examples(np.random.default_rng(seed), stock, size)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * size // 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-3), loss, metrics=["accuracy"])
    model.fit(images, labels, 64, epochs, verbose=2)


# The judge


class Judge:
    """Answers what images show.

    An object has the name of the real image that it looks most like; a small network counts.

    Args:
        stock: The `Stock` of real images.
        counter: The trained `counter()`; None where nothing is to be counted.
    """

    def __init__(self, stock, counter=None):
        self.counter = counter
        known = [(noun, i) for noun in NOUNS for i in stock.all_called(noun)]
        self.nouns = [noun for noun, _ in known]
        images = [np.asarray(layouts.alone(stock.image(i)).convert("RGB")) for _, i in known]
        self.known = np.stack([crop(image) for image in images])

    def names(self, images):
        """Returns the noun of what each image shows."""
        crops = np.stack([crop(image) for image in images])
        distances = (self.known**2).sum(1) - 2 * crops @ self.known.T
        return [self.nouns[i] for i in distances.argmin(1)]

    def counts(self, images):
        """Returns how many objects each image shows, 1 to MOST."""
        outlines = np.stack([outline(image) for image in images])
        return self.counter.predict(outlines, verbose=0).argmax(-1) + 1

    def measure(self, images, items):
        """Returns the percentages of what is right: "count", or "both" present and "places".

        Args:
            images: uint8 (n, 128, 128, 3).
            items: n prompts of one kind, as `unseen.prompts` returns them.
        """
        if "count" in items[0]:
            return {"count": 100 * float(np.mean(self.counts(images) == [item["count"] for item in items]))}
        axis = 0 if " above " in items[0]["prompt"] else 1
        names = self.names([part for image in images for part in halves(image, axis)])
        found = list(zip(names[::2], names[1::2], strict=True))
        asked = [(item["first"], item["second"]) for item in items]
        both = [set(pair) == set(wanted) for pair, wanted in zip(found, asked, strict=True)]
        places = [pair == wanted for pair, wanted in zip(found, asked, strict=True)]
        return {"both": 100 * float(np.mean(both)), "places": 100 * float(np.mean(places))}


def measure_on_real(judge, stock, count=200):
    """Returns what the judge says about real compositions of unseen combinations."""
    rng = np.random.default_rng(1)
    result = {}
    for kind in ("count", "beside", "above"):
        items = [item for item in prompts(kind, count, seed=1) if "noun" not in item or stock.all_called(item["noun"])]
        result[kind] = judge.measure(np.stack([compose(rng, stock, item) for item in items]), items)
    return result


def main():
    import pack

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", required=True)
    parser.add_argument("--output", required=True, type=Path, help="the .weights.h5 to write")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    pictures = pack.load(arguments.pack, workers=arguments.workers)
    stock = Stock(pictures.rgba, describe(pictures))
    model = counter()
    train(model, stock)
    model.save_weights(arguments.output)
    print(measure_on_real(Judge(stock, model), stock))


if __name__ == "__main__":
    main()
