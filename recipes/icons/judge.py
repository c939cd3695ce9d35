"""Judges what an image shows: names and counts its objects with small classifiers, names their colour.

    python recipes/icons/judge.py --pack icons.pack --output judge/

trains its classifiers and prints how often the judge is right on real compositions of unseen combinations.
"""

import argparse
from pathlib import Path

import layouts
import numpy as np
from colours import COLOURS, hsv, hue_name
from PIL import Image
from scipy import ndimage
from stock import Stock, describe
from unseen import NOUNS, compose, prompts

CROP = 48
HALF = 64


# Pixels


def visible(image):
    """Returns which pixels of uint8 (height, width, 3) are not white ground."""
    return image.min(-1) < 222


def halves(image, axis):
    """Returns the two parts of an image along an axis, cut where the fewest pixels are visible near the middle."""
    profile = visible(image).sum(1 - axis).astype(float)
    length = len(profile)
    low, high = length // 4, 3 * length // 4
    smooth = ndimage.uniform_filter1d(profile, 5)[low:high] + 1e-3 * np.abs(np.arange(low, high) - length / 2)
    cut = low + int(smooth.argmin())
    return np.split(image, [cut], axis=axis)


def crop(image):
    """Returns what an image shows as uint8 (CROP, CROP, 3), centred on white."""
    mask = visible(image)
    if mask.sum() < 20:
        return np.full((CROP, CROP, 3), 255, np.uint8)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    part = layouts.fit(part.convert("RGBA"), CROP - 4, CROP - 4)
    canvas = Image.new("RGBA", (CROP, CROP), "white")
    canvas.alpha_composite(part, ((CROP - part.width) // 2, (CROP - part.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def colour_share(image, word):
    """Returns the share of an image's visible pixels that have a colour, outlines in black and white left out."""
    pixels = image[visible(image)].astype("float32") / 255
    if len(pixels) < 20:
        return 0.0
    names = [hue_name(*values) for values in zip(*hsv(pixels[:: max(1, len(pixels) // 800)]), strict=True)]
    greys = {"black", "white", "grey"}
    counted = [name for name in names if name is None or name == word or name not in greys - {word}]
    return sum(name == word for name in counted) / max(1, len(counted) if word not in greys else len(names))


# The classifiers


def classifier(size, classes):
    """Returns a Keras model: float (n, size, size, 3) in [0, 1] to logits of the classes."""
    import keras

    layers = [keras.layers.Input((size, size, 3))]
    for width in (24, 48, 96, 128):
        layers += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dropout(0.3), keras.layers.Dense(classes)]
    return keras.Sequential(layers)


def spoil(rng, canvas):
    """Returns a canvas as uint8 (128, 128, 3), blurred and noisy as a model's images are."""
    pixels = np.asarray(canvas.convert("RGB")).astype("float32")
    if rng.random() < 0.6:
        pixels = ndimage.gaussian_filter(pixels, (*[rng.uniform(0.3, 1.3)] * 2, 0))
    return np.clip(pixels + rng.normal(0, rng.uniform(0, 8), pixels.shape), 0, 255).astype(np.uint8)


def example_of_noun(rng, stock):
    """Returns (uint8 (CROP, CROP, 3), index of its noun) of an object as compositions show it."""
    label = int(rng.integers(len(NOUNS)))
    i = stock.called(rng, NOUNS[label])
    colour = list(COLOURS)[rng.integers(9)] if stock.tone(i) is not None and rng.random() < 0.25 else None
    canvas = layouts.blank()
    layouts.put(canvas, layouts.fit(stock.image(i, colour), *rng.uniform(34, 80, 2)), 64, 110)
    return crop(spoil(rng, canvas)), label


def example_of_count(rng, stock):
    """Returns (uint8 (HALF, HALF, 3), count - 1) of an array of an object."""
    count = int(rng.integers(1, 6))
    i = stock.object(rng)
    colour = list(COLOURS)[rng.integers(9)] if stock.tone(i) is not None and rng.random() < 0.25 else None
    return halved(spoil(rng, layouts.array_of(rng, stock.image(i, colour), count))), count - 1


def halved(image):
    return np.asarray(Image.fromarray(image).reduce(2))


def train(model, example, stock, rounds, size=2048, seed=0):
    """Trains a classifier on fresh examples in every round."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(2e-3, rounds * size // 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-3), loss, metrics=["accuracy"])
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        images, labels = zip(*(example(rng, stock) for _ in range(size)), strict=True)
        history = model.fit(np.stack(images) / np.float32(255), np.array(labels), 64, verbose=0).history
        print(example.__name__, number, {name: round(values[0], 3) for name, values in history.items()}, flush=True)


class Judge:
    """Answers what images show; its two classifiers are kept in one folder."""

    def __init__(self):
        self.of_nouns, self.of_counts = classifier(CROP, len(NOUNS)), classifier(HALF, 5)
        self.models = {"nouns": self.of_nouns, "counts": self.of_counts}

    def save(self, folder):
        for name, model in self.models.items():
            model.save_weights(Path(folder) / f"{name}.weights.h5")

    def load(self, folder):
        for name, model in self.models.items():
            model.load_weights(Path(folder) / f"{name}.weights.h5")
        return self

    def names(self, crops):
        """Returns the noun of each crop."""
        logits = self.of_nouns.predict(np.stack(crops) / np.float32(255), verbose=0)
        return [NOUNS[i] for i in logits.argmax(-1)]

    def counts(self, images):
        """Returns how many objects each image shows, 1 to 5."""
        small = np.stack([halved(image) for image in images])
        return self.of_counts.predict(small / np.float32(255), verbose=0).argmax(-1) + 1

    def pairs(self, images, items):
        """Returns (both present, places right): bools for images of two objects beside or above each other."""
        axes = [0 if " above " in item["prompt"] else 1 for item in items]
        parts = [crop(part) for image, axis in zip(images, axes, strict=True) for part in halves(image, axis)]
        names = self.names(parts)
        found = list(zip(names[::2], names[1::2], strict=True))
        asked = [(item["first"], item["second"]) for item in items]
        both = [set(names) == set(wanted) for names, wanted in zip(found, asked, strict=True)]
        return both, [names == wanted for names, wanted in zip(found, asked, strict=True)]

    def measure(self, images, items):
        """Returns the percentages of what is right: "count", or "both" and "places"."""
        if "count" in items[0]:
            return {"count": 100 * float(np.mean(self.counts(images) == [item["count"] for item in items]))}
        both, places = self.pairs(images, items)
        return {"both": 100 * float(np.mean(both)), "places": 100 * float(np.mean(places))}


def measure_on_real(judge, stock, count=200):
    """Returns what the judge says about real compositions of unseen combinations."""
    rng = np.random.default_rng(1)
    result = {}
    for kind in ("count", "beside", "above"):
        items = [item for item in prompts(kind, count, seed=1) if "noun" not in item or stock.called(rng, item["noun"])]
        result[kind] = judge.measure(np.stack([compose(rng, stock, item) for item in items]), items)
    return result


def main():
    import pack

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", required=True)
    parser.add_argument("--output", required=True, type=Path, help="folder to write the classifiers' weights to")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    pictures = pack.load(arguments.pack, workers=arguments.workers)
    stock = Stock(pictures.rgba, describe(pictures))
    judge = Judge()
    train(judge.of_nouns, example_of_noun, stock, arguments.rounds)
    train(judge.of_counts, example_of_count, stock, arguments.rounds // 2)
    arguments.output.mkdir(parents=True, exist_ok=True)
    judge.save(arguments.output)
    print(measure_on_real(judge, stock))


if __name__ == "__main__":
    main()
