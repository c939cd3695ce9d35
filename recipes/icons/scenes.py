"""Composes captioned scenes of 128×128 from single images: colours, counts, places, sizes, grounds.

`make(pictures, count, seed)` makes many in parallel; `scene(rng, stock)` makes one.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import grounds
import numpy as np
from captions import STYLE_WORDS, plural, with_article
from colours import COLOURS, recolour, tone
from PIL import Image
from workers import run

SIZE = 128
HELD_OUT = 0.1  # share of the combinations that no scene shows
OBJECTS = {"animal", "food", "plant", "vehicle", "object", "building", "clothing", "sky", "person", "creature", "symbol"}
BEINGS = {"animal", "person", "creature"}
PAINTED = OBJECTS - {"person", "sky"}
NUMBERS = ("one", "two", "three", "four", "five")
SUPPORTS = (
    *("skateboard", "bed", "chair", "couch", "car", "horse", "elephant", "cloud", "cardboard box", "sailboat", "rocket"),
    *("house", "castle", "mountain", "turtle", "whale", "truck", "bus", "bicycle", "motorcycle", "pizza", "cake", "donut"),
    *("tree", "mushroom", "book", "tv", "piano", "motor scooter", "scooter", "camel", "cow", "dragon", "unicorn", "canoe"),
)
MOUNTS = (
    *("horse", "bicycle", "motorcycle", "skateboard", "elephant", "unicorn", "camel", "dragon", "zebra", "whale", "shark"),
    *("turtle", "rocket", "scooter", "kick scooter", "cow", "pig", "dinosaur", "tiger", "lion", "deer", "llama", "bear"),
)
CONTAINERS = ("cardboard box", "basket", "bathtub", "shopping cart", "bucket", "gift", "treasure chest")
# An animal's face: how far down its image its eyes are, and the upper edge of its forehead (shares of its height).
FACES = {
    **{name: (0.46, 0.16) for name in ("dog face", "cow face", "pig face", "monkey face", "horse face")},
    **{name: (0.50, 0.20) for name in ("cat face", "tiger face", "fox", "lion", "bear", "panda", "koala", "mouse face")},
    **{name: (0.60, 0.45) for name in ("rabbit face",)},
    **{name: (0.45, 0.10) for name in ("grinning face", "smiling face", "robot", "wolf", "polar bear", "hamster")},
    **{name: (0.45, 0.10) for name in ("man", "woman", "boy", "girl", "person", "baby", "clown face", "alien", "skull")},
}


class Stock:
    """Pictures as a process of its own needs them: chosen by weight, their visible parts cut out."""

    def __init__(self, rgba, pictures):
        self.rgba = rgba
        self.captions, self.names, self.styles, self.kinds = (pictures[key] for key in ("captions", "names", "styles", "kinds"))
        self.all_names = pictures["all_names"]
        self.weights = np.asarray(pictures["weights"])
        self.objects = np.asarray(pictures["objects"])
        self.tones = {}
        self.tables = {}

    def choose(self, rng, key="all", test=None, style=None):
        """Returns the index of a picture, chosen by weight among those that `test(index)` allows; None if there is none.

        Args:
            rng: `numpy.random.Generator`.
            key: Name of the test, under which its choice is kept.
            test: Function of an index, or None for every picture.
            style: Style of the picture, or None for any.
        """
        place = (key, style)
        if place not in self.tables:
            chosen = [i for i, own in enumerate(self.styles) if (style in (None, own)) and (test is None or test(i))]
            self.tables[place] = np.array(chosen, int), np.cumsum(self.weights[chosen])
        chosen, sums = self.tables[place]
        return int(chosen[np.searchsorted(sums, rng.random() * sums[-1], side="right")]) if len(chosen) else None

    def object(self, rng, style=None):
        return self.choose(rng, "objects", lambda i: self.objects[i], style)

    def being(self, rng, style=None):
        return self.choose(rng, "beings", lambda i: self.objects[i] and self.kinds[i] in BEINGS, style)

    def named(self, rng, names, style=None):
        key = names[0] + str(len(names))
        return self.choose(rng, key, lambda i: self.objects[i] and self.names[i] in names, style)

    def name(self, rng, i):
        """Returns one of the names of a picture, mostly the main one."""
        names = self.all_names[i]
        short = names[0].removesuffix(" face") if self.kinds[i] == "animal" else names[0]
        return short if len(names) == 1 or rng.random() < 0.75 else names[rng.integers(len(names))]

    def tone(self, i):
        if i not in self.tones:
            self.tones[i] = tone(self.rgba[i])
        return self.tones[i]

    def image(self, i, colour=None):
        """Returns a picture's visible part, in its own colour or another, as an RGBA image."""
        rgba = self.rgba[i] if colour is None else recolour(self.rgba[i], self.tone(i), colour)
        image = Image.fromarray(rgba)
        return image.crop(image.getchannel("A").getbbox())


def held_out(kind, *words):
    """Returns whether no scene shows a combination, such as ("colour", "blue", "apple")."""
    digest = hashlib.sha256("|".join((kind, *map(str, words))).encode()).digest()
    return digest[0] < 256 * HELD_OUT


def fit(image, width, height):
    """Returns an image scaled to fit into width × height pixels."""
    scale = min(width / image.width, height / image.height)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)


def put(canvas, image, centre, bottom):
    """Draws an image on the canvas; (centre, bottom) is the middle of its lower edge."""
    canvas.alpha_composite(image, (max(0, round(centre - image.width / 2)), max(0, round(bottom - image.height))))


def blank():
    return Image.new("RGBA", (SIZE, SIZE), "white")


def whole(image):
    """Returns a canvas with one image in its middle."""
    canvas = blank()
    put(canvas, image, SIZE / 2, (SIZE + image.height) / 2)
    return canvas


# Each of the functions below returns (canvas, caption), or None if its choice is held out or does not fit.


def plain(rng, stock):
    i = stock.choose(rng)
    texts, weights = zip(*stock.captions[i], strict=True)
    caption = texts[np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right").clip(0, len(texts) - 1)]
    if rng.random() < 0.15:
        words = STYLE_WORDS[stock.styles[i]]
        caption += ", " + words[rng.integers(len(words))]
    image = Image.fromarray(stock.rgba[i])
    canvas = blank()
    canvas.alpha_composite(image)
    return canvas, caption


def pick(rng, stock, style=None, coloured=0.0, beings=False):
    """Returns (index, noun, colour, adjective) of an object, in another colour with the probability `coloured`."""
    i = stock.being(rng, style) if beings else stock.object(rng, style)
    noun = stock.name(rng, i)
    part = stock.tone(i)
    colour = word = None
    if part is not None and rng.random() < coloured:
        word = list(COLOURS)[rng.integers(len(COLOURS))]
        if stock.kinds[i] in PAINTED and word != part.name and word != "white":
            colour = word
        else:
            word = part.name if rng.random() < 0.5 else None
        if word and (held_out("colour", word, noun) or noun.startswith(tuple(COLOURS))):
            colour = word = None
    return i, noun, colour, word or ""


def phrase(noun, adjectives=""):
    """Returns a noun with its adjectives and its article: "a blue apple", "blue grapes"."""
    if not adjectives:
        return with_article(noun)
    bare = with_article(noun).endswith(noun) and with_article(noun) == noun
    article = "" if bare else "an " if adjectives[0] in "aeiou" else "a "
    return f"{article}{adjectives} {noun}"


def painted(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=1.0)
    if not word:
        return None
    caption = phrase(noun, word)
    if rng.random() < 0.25:
        caption = f"{word} {noun}"
    return whole(stock.image(i, colour)), caption


SPOTS = (
    ((64, 64),),
    ((33, 64), (95, 64)),
    ((64, 34), (33, 94), (95, 94)),
    ((33, 34), (95, 34), (33, 94), (95, 94)),
    ((27, 27), (101, 27), (64, 64), (27, 101), (101, 101)),
)
ROWS = (((64, 64),), ((33, 64), (95, 64)), ((22, 64), (64, 64), (106, 64)), None, ((24, 40), (64, 40), (104, 40), (44, 92), (84, 92)))


def counted(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=0.25)
    count = int(rng.choice(5, p=(0.08, 0.27, 0.27, 0.2, 0.18))) + 1
    if held_out("count", count, noun) or (stock.kinds[i] == "person" and "ing" in noun) or " " in noun and with_article(noun) == noun:
        return None
    spots = (rng.random() < 0.3 and ROWS[count - 1]) or SPOTS[count - 1]
    room = (92, 58, 54 if spots is SPOTS[2] else 39, 54, 44 if spots is SPOTS[4] else 37)[count - 1]
    image = fit(stock.image(i, colour), room, room)
    canvas = blank()
    for x, y in spots:
        dx, dy = rng.uniform(-2.5, 2.5, 2)
        put(canvas, image, x + dx, y + dy + image.height / 2)
    number = NUMBERS[count - 1] if rng.random() < 0.85 else str(count)
    noun = noun if count == 1 or with_article(noun) == noun else plural(noun)
    return canvas, " ".join(part for part in (number, word, noun) if part)


def two(rng, stock, coloured=0.2):
    """Returns two different objects of one style."""
    first = pick(rng, stock, coloured=coloured)
    second = pick(rng, stock, stock.styles[first[0]], coloured=coloured)
    return None if first[1] == second[1] or stock.names[first[0]] == stock.names[second[0]] else (first, second)


def beside(rng, stock):
    pair = two(rng, stock)
    if pair is None or held_out("beside", *sorted(choice[1] for choice in pair)):
        return None
    left, right = pair
    sizes = [1.0, 1.0]
    words = ["", ""]
    if rng.random() < 0.15:
        small = rng.integers(2)
        sizes[small], words = 0.5, ["big", "big"]
        words[small] = "small"
    canvas = blank()
    bottom = rng.uniform(92, 104)
    for (i, _, colour, _), x, size in zip(pair, (33, 95), sizes, strict=True):
        put(canvas, fit(stock.image(i, colour), 58 * size, 76 * size), x + rng.uniform(-1.5, 1.5), bottom)
    a, b = (phrase(choice[1], f"{word} {choice[3]}".strip()) for choice, word in zip(pair, words, strict=True))
    chance = rng.random()
    if chance < 0.35:
        return canvas, f"{a} to the left of {b}" if chance < 0.12 else f"{a} on the left and {b} on the right" if chance < 0.23 else f"{b} to the right of {a}"
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    joint = ("and", "next to", "beside", "and")[rng.integers(4)]
    return canvas, f"{a} {joint} {b}"


def above(rng, stock):
    pair = two(rng, stock)
    if pair is None or held_out("above", pair[0][1], pair[1][1]):
        return None
    canvas = blank()
    for (i, _, colour, _), y in zip(pair, (32, 96), strict=True):
        image = fit(stock.image(i, colour), 84, 57)
        put(canvas, image, 64 + rng.uniform(-8, 8), y + image.height / 2 + rng.uniform(-2, 2))
    a, b = (phrase(choice[1], choice[3]) for choice in pair)
    forms = (f"{a} above {b}", f"{b} below {a}", f"{a} over {b}", f"{b} under {a}")
    return canvas, forms[(0, 0, 1, 1, 2, 3)[rng.integers(6)]]


def surface(image):
    """Returns how far down an image's upper edge is in the middle third of its width, in pixels."""
    alpha = np.asarray(image.getchannel("A"))
    middle = alpha[:, alpha.shape[1] // 3 : -(-2 * alpha.shape[1] // 3)].max(1)
    return int((middle > 128).argmax())


def on_top(rng, stock):
    riding = rng.random() < 0.45
    support = stock.named(rng, MOUNTS if riding else SUPPORTS)
    i, noun, colour, word = pick(rng, stock, stock.styles[support], 0.15, beings=riding or rng.random() < 0.5)
    base = stock.name(rng, support)
    relation = "riding" if riding else "on"
    if noun == base or stock.names[i] == stock.names[support] or held_out(relation, noun, base):
        return None
    below = fit(stock.image(support), 104, 72)
    upper = fit(stock.image(i, colour), 64, 56)
    top = 122 - below.height + surface(below)
    canvas = blank()
    x = 64 + rng.uniform(-5, 5)
    bottom = max(top + upper.height * (0.22 if riding else 0.07), upper.height + 2)
    put(canvas, upper, x, bottom) if riding else None
    put(canvas, below, 64, 122)
    None if riding else put(canvas, upper, x, bottom)
    a, b = phrase(noun, word), phrase(base)
    joint = relation if riding else ("on", "on", "on top of", "sitting on")[rng.integers(4 if stock.kinds[i] in BEINGS else 3)]
    return canvas, f"{a} {joint} {b}"


def inside(rng, stock):
    holder = stock.named(rng, CONTAINERS)
    i, noun, colour, word = pick(rng, stock, stock.styles[holder], coloured=0.15)
    base = stock.name(rng, holder)
    if stock.names[i] == stock.names[holder] or held_out("in", noun, base):
        return None
    below = fit(stock.image(holder), 100, 72)
    upper = fit(stock.image(i, colour), below.width * 0.6, 64)
    top = 122 - below.height + surface(below)
    canvas = blank()
    put(canvas, upper, 64, max(top + upper.height * 0.35, upper.height + 2))
    put(canvas, below, 64, 122)
    return canvas, f"{phrase(noun, word)} in {phrase(base)}"


def holding(rng, stock):
    who = stock.being(rng)
    i, noun, colour, word = pick(rng, stock, stock.styles[who], coloured=0.25)
    name = stock.name(rng, who)
    if stock.kinds[i] not in ("food", "plant", "object", "symbol") or held_out("with", name, noun):
        return None
    canvas = blank()
    put(canvas, fit(stock.image(who), 92, 108), 52, 120)
    put(canvas, fit(stock.image(i, colour), 44, 50), 102, 122)
    joint = ("with", "with", "holding")[rng.integers(3)]
    return canvas, f"{phrase(name)} {joint} {phrase(noun, word)}"


def dressed(rng, stock):
    who = stock.choose(rng, "faces", lambda i: stock.names[i] in FACES and stock.objects[i])
    thing = ("sunglasses", "glasses", "top hat", "crown", "bow", "baseball cap", "sun hat")[rng.choice(7, p=(0.3, 0.1, 0.2, 0.2, 0.08, 0.06, 0.06))]
    i = stock.named(rng, (thing,), stock.styles[who])
    name = stock.name(rng, who)
    if i is None or "face" in stock.name(rng, i) or held_out("with", name, thing):
        return None
    eyes, forehead = FACES[stock.names[who]]
    image = fit(stock.image(who), 112, 94)
    top = 122 - image.height
    canvas = blank()
    put(canvas, image, 64, 122)
    if "glasses" in thing:
        glasses = fit(stock.image(i), image.width * 0.74, image.height * 0.34)
        put(canvas, glasses, 64, top + eyes * image.height + glasses.height / 2)
    else:
        hat = fit(stock.image(i), image.width * 0.6, 46)
        put(canvas, hat, 64, max(hat.height + 1, top + (forehead + 0.06) * image.height))
    shown = "hat" if thing.endswith(("hat", "cap")) and rng.random() < 0.6 else thing
    joint = ("with", "wearing", "with")[rng.integers(3)]
    return canvas, f"{phrase(name)} {joint} {phrase(shown)}"


def grounded(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=0.3)
    if rng.random() < 0.5:
        ground, words, colours = grounds.plain(rng)
        own = colour or (stock.tone(i) and stock.tone(i).name)
        if own in colours:
            return None
        canvas, room, bottom = ground, 96, None
    else:
        canvas, words, bottom = grounds.place(rng)
        room = rng.uniform(62, 84)
    image = fit(stock.image(i, colour), room, room)
    put(canvas, image, 64 + (rng.uniform(-12, 12) if room < 90 else 0), bottom or 64 + image.height / 2)
    subject = phrase(noun, word)
    return canvas, f"{subject} {words}"


def sized(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=0.2)
    small = rng.random() < 0.6
    side = rng.uniform(34, 48) if small else 124
    size = (("small", "small", "tiny", "little") if small else ("big", "big", "huge", "large"))[rng.integers(4)]
    if held_out("size", size, noun):
        return None
    image = fit(stock.image(i, colour), side, side)
    return whole(image), phrase(noun, f"{size} {word}".strip())


RECIPES = (
    (plain, 0.52),
    (painted, 0.12),
    (counted, 0.09),
    (beside, 0.075),
    (above, 0.035),
    (on_top, 0.045),
    (inside, 0.01),
    (holding, 0.02),
    (dressed, 0.025),
    (grounded, 0.04),
    (sized, 0.02),
)


def scene(rng, stock):
    """Returns a scene as (uint8 (128, 128, 3), caption).

    Args:
        rng: `numpy.random.Generator`.
        stock: A `Stock` of pictures.
    """
    shares = np.cumsum([share for _, share in RECIPES])
    recipe = RECIPES[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))][0]
    made = None
    while made is None:
        made = recipe(rng, stock)
    canvas, caption = made
    return np.asarray(canvas.convert("RGB")), caption


def describe(pictures):
    """Returns what a `Stock` needs besides the images, as plain lists."""
    share = (pictures.rgba[..., 3] > 128).mean((1, 2))
    objects = [kind in OBJECTS and 0.04 < area < 0.74 for kind, area in zip(pictures.kinds, share, strict=True)]
    return {
        "captions": pictures.captions,
        "names": pictures.names,
        "all_names": [list(concept.names) for concept in pictures.concepts],
        "styles": pictures.styles,
        "kinds": pictures.kinds,
        "weights": pictures.weights.tolist(),
        "objects": objects,
    }


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
