"""Writes prompts of combinations that no scene shows, and composes real images of them."""

import itertools

import layouts
import numpy as np
from captions import phrase, plural, with_article
from colours import COLOURS
from compositions import NUMBERS
from stock import held_out

NOUNS = (
    *("cat", "dog", "horse", "elephant", "lion", "panda", "rabbit", "frog", "penguin", "owl", "duck", "fish"),
    *("bee", "butterfly", "snake", "turtle", "octopus", "dragon", "cow", "pig", "sheep", "chicken", "mouse"),
    *("crab", "whale", "snail", "spider", "monkey", "bear", "fox", "giraffe", "apple", "banana", "strawberry"),
    *("lemon", "carrot", "pizza", "hamburger", "donut", "cupcake", "egg", "mushroom", "car", "bus", "train"),
    *("airplane", "rocket", "bicycle", "tractor", "helicopter", "sailboat", "house", "castle", "tree"),
    *("cactus", "rose", "sunflower", "tulip", "star", "cloud", "umbrella", "key", "book", "clock", "camera"),
    *("guitar", "trumpet", "hammer", "light bulb", "candle", "balloon", "gift", "crown", "shoe", "dress"),
    *("backpack", "chair", "robot", "ghost", "skull", "diamond", "bell"),
)
MORE_NOUNS = (
    *("squirrel", "flamingo", "parrot", "lizard", "shark", "wolf", "goat", "camel", "kangaroo", "koala"),
    *("hedgehog", "pear", "peach", "cherry", "pineapple", "watermelon", "broccoli", "tomato", "avocado"),
    *("cookie", "pretzel", "truck", "motorcycle", "scooter", "taxi", "ship", "ufo", "teapot", "vase", "cup"),
    *("spoon", "knife", "hat", "tie", "glove", "sock", "boot", "t-shirt", "handbag", "ring", "drum", "violin"),
    *("piano", "pencil", "paintbrush", "magnet", "bucket", "basket", "bed", "door", "couch", "phone", "laptop"),
    *("microphone", "battery", "flashlight", "kite", "leaf", "seashell", "snowflake", "feather", "heart"),
    *("circle", "square", "gem", "flower", "pumpkin", "lantern"),
)


def prompts(kind, count, seed=0):
    """Returns `count` prompts of combinations that no scene shows, as dicts of "prompt" and what it asks for.

    If there are fewer, some come twice.

    Args:
        kind: "colour", "count", "beside" or "above".
        count: Number of prompts.
        seed: An integer; the same seed gives the same prompts.
    """
    if kind == "colour":
        words = [word for word in COLOURS if word not in ("white", "grey")]
        found = [
            {"noun": b, "colour": a, "prompt": phrase(b, a)} for a, b in itertools.product(words, NOUNS + MORE_NOUNS)
        ]
        found = [item for item in found if held_out("colour", item["colour"], item["noun"])]
    elif kind == "count":
        found = [
            {"noun": noun, "count": number, "prompt": f"{word} {plural(noun)}"}
            for (number, word), noun in itertools.product(list(enumerate(NUMBERS, 1))[1:], NOUNS + MORE_NOUNS)
            if held_out("count", number, noun)
        ]
    else:
        joint = {"beside": "to the left of", "above": "above"}[kind]
        found = [
            {"first": a, "second": b, "prompt": f"{with_article(a)} {joint} {with_article(b)}"}
            for a, b in itertools.permutations(NOUNS, 2)
            if held_out(kind, *(sorted((a, b)) if kind == "beside" else (a, b)))
        ]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in np.resize(order, count)]


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
