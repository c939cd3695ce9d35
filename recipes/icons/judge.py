"""Judges what an image shows: finds its objects, names them with a small classifier, names their colour.

    python recipes/icons/judge.py --pack icons.pack --output judge.weights.h5

trains the classifier and prints how often the judge is right on real compositions of unseen combinations.
"""

import argparse
import itertools

import layouts
import numpy as np
from captions import phrase, plural, with_article
from colours import COLOURS, hsv, hue_name
from PIL import Image
from scenes import NUMBERS
from scipy import ndimage
from stock import Stock, describe, held_out

NOUNS = (
    *("cat", "dog", "horse", "elephant", "lion", "panda", "rabbit", "frog", "penguin", "owl", "duck", "fish", "bee"),
    *("butterfly", "snake", "turtle", "octopus", "dragon", "cow", "pig", "sheep", "chicken", "mouse", "crab", "whale"),
    *("snail", "spider", "monkey", "bear", "fox", "giraffe", "apple", "banana", "strawberry", "lemon", "carrot", "pizza"),
    *("hamburger", "donut", "cupcake", "egg", "mushroom", "car", "bus", "train", "airplane", "rocket", "bicycle"),
    *("tractor", "helicopter", "sailboat", "house", "castle", "tree", "cactus", "rose", "sunflower", "tulip", "star"),
    *("cloud", "umbrella", "key", "book", "clock", "camera", "guitar", "trumpet", "hammer", "light bulb", "candle"),
    *("balloon", "gift", "crown", "shoe", "dress", "backpack", "chair", "robot", "ghost", "skull", "diamond", "bell"),
)
CROP = 48


# Finding objects


def visible(image):
    """Returns which pixels of uint8 (height, width, 3) are not white ground."""
    return image.min(-1) < 222


def objects(image, least=0.12):
    """Returns the boxes of an image's objects, each (slice, slice): connected parts not much smaller than the largest."""
    mask = ndimage.binary_closing(np.pad(visible(image), 4), iterations=2)[4:-4, 4:-4]
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum_labels(mask, parts, np.arange(1, count + 1))
    boxes = ndimage.find_objects(parts)
    return [box for box, size in zip(boxes, sizes, strict=True) if size > max(20, least * sizes.max())]


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


# Prompts of unseen combinations


def prompts(kind, count, seed=0):
    """Returns `count` prompts of combinations that no scene shows, each a dict of "prompt" and what it asks for.

    Args:
        kind: "colour", "count", "beside" or "above".
        count: Number of prompts.
        seed: An integer; the same seed gives the same prompts.
    """
    if kind == "colour":
        words = [word for word in COLOURS if word not in ("white", "black", "grey")]
        found = [{"noun": b, "colour": a, "prompt": phrase(b, a)} for a, b in itertools.product(words, NOUNS)]
        found = [item for item in found if held_out("colour", item["colour"], item["noun"])]
    elif kind == "count":
        found = [
            {"noun": noun, "count": number, "prompt": f"{word} {plural(noun)}"}
            for (number, word), noun in itertools.product(list(enumerate(NUMBERS, 1))[1:], NOUNS)
            if held_out("count", number, noun)
        ]
    else:
        joint = {"beside": "to the left of", "above": "above"}[kind]
        found = [
            {"first": a, "second": b, "prompt": f"{with_article(a)} {joint} {with_article(b)}"}
            for a, b in itertools.permutations(NOUNS, 2)
            if held_out(kind, *(sorted((a, b)) if kind == "beside" else (a, b)))
        ]
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[i] for i in order]


def compose(rng, stock, item):
    """Returns a real composition of what a prompt asks for, uint8 (128, 128, 3)."""
    if "count" in item:
        canvas = layouts.array_of(rng, stock.image(stock.called(rng, item["noun"])), item["count"])
    else:
        first = stock.called(rng, item["first"])
        second = stock.called(rng, item["second"], stock.styles[first]) or stock.called(rng, item["second"])
        layout = layouts.stacked if " above " in item["prompt"] else layouts.side_by_side
        canvas = layout(rng, stock.image(first), stock.image(second))
    return np.asarray(canvas.convert("RGB"))


# The classifier


def classifier():
    """Returns the Keras model: float (n, CROP, CROP, 3) in [0, 1] to logits of NOUNS."""
    import keras

    layers = [keras.layers.Input((CROP, CROP, 3))]
    for width in (32, 64, 128):
        layers += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dropout(0.4), keras.layers.Dense(len(NOUNS))]
    return keras.Sequential(layers)


def examples(rng, stock, count):
    """Returns (uint8 (count, CROP, CROP, 3), labels) of crops as compositions and models give them."""
    images, labels = np.empty((count, CROP, CROP, 3), np.uint8), rng.integers(len(NOUNS), size=count)
    for row, label in zip(images, labels, strict=True):
        i = stock.called(rng, NOUNS[label])
        tone = stock.tone(i)
        colour = list(COLOURS)[rng.integers(9)] if tone is not None and rng.random() < 0.25 else None
        image = layouts.fit(stock.image(i, colour), *rng.uniform(34, 80, 2))
        canvas = layouts.blank()
        layouts.put(canvas, image, 64, 110)
        pixels = np.asarray(canvas.convert("RGB")).astype("float32")
        if rng.random() < 0.5:
            pixels = ndimage.gaussian_filter(pixels, (*[rng.uniform(0.3, 1.2)] * 2, 0))
        pixels = pixels + rng.normal(0, rng.uniform(0, 8), pixels.shape)
        row[:] = crop(np.clip(pixels, 0, 255).astype(np.uint8))
    return images, labels


def train(stock, steps=40, per_step=4096, seed=0):
    """Returns the trained classifier."""
    import keras

    model = classifier()
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps * per_step // 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-3), loss, metrics=["accuracy"])
    rng = np.random.default_rng(seed)
    for step in range(steps):
        images, labels = examples(rng, stock, per_step)
        history = model.fit(images / np.float32(255), labels, batch_size=64, verbose=0).history
        print(step, {name: round(values[0], 3) for name, values in history.items()}, flush=True)
    return model


class Judge:
    """Answers what images show.

    Args:
        model: The trained `classifier()`.
    """

    def __init__(self, model):
        self.model = model

    def names(self, crops):
        """Returns the noun of each crop."""
        logits = self.model.predict(np.stack(crops) / np.float32(255), verbose=0)
        return [NOUNS[i] for i in logits.argmax(-1)]

    def counts(self, images):
        return [len(objects(image)) for image in images]

    def pairs(self, images, items):
        """Returns (both present, places right): bools for images of two objects beside or above each other."""
        axes = [0 if " above " in item["prompt"] else 1 for item in items]
        parts = [crop(part) for image, axis in zip(images, axes, strict=True) for part in halves(image, axis)]
        names = self.names(parts)
        found = list(zip(names[::2], names[1::2], strict=True))
        asked = [(item["first"], item["second"]) for item in items]
        both = [set(names) == set(wanted) for names, wanted in zip(found, asked, strict=True)]
        return both, [names == wanted for names, wanted in zip(found, asked, strict=True)]


def main():
    import pack

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", required=True)
    parser.add_argument("--output", required=True, help="the .weights.h5 to write")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    pictures = pack.load(arguments.pack, workers=arguments.workers)
    stock = Stock(pictures.rgba, describe(pictures))
    model = train(stock, arguments.steps)
    model.save_weights(arguments.output)
    print(measure_on_real(Judge(model), stock))


def measure_on_real(judge, stock, count=200):
    """Returns how often the judge is right on real compositions of unseen combinations, in percent."""
    rng = np.random.default_rng(1)
    result = {}
    for kind in ("count", "beside", "above"):
        items = prompts(kind, count, seed=1)
        images = np.stack([compose(rng, stock, item) for item in items])
        if kind == "count":
            right = [found == item["count"] for found, item in zip(judge.counts(images), items, strict=True)]
            result["count"] = 100 * np.mean(right)
        else:
            both, places = judge.pairs(images, items)
            result |= {f"{kind} both": 100 * np.mean(both), f"{kind} places": 100 * np.mean(places)}
    return {name: float(value) for name, value in result.items()}


if __name__ == "__main__":
    main()
