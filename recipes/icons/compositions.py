"""Composes scenes of pictures with captions that say what they show: colours, counts, places, sizes, grounds."""

import grounds
import layouts
import numpy as np
from captions import STYLE_WORDS, phrase, plural, with_article
from colours import COLOURS
from PIL import Image
from stock import BEINGS, PAINTED, held_out

NUMBERS = ("one", "two", "three", "four", "five")
SUPPORTS = (
    *("skateboard", "bed", "chair", "couch", "car", "horse", "elephant", "cloud", "cardboard box", "sailboat"),
    *("rocket", "house", "castle", "mountain", "turtle", "whale", "truck", "bus", "bicycle", "motorcycle"),
    *("pizza", "cake", "donut", "tree", "mushroom", "book", "tv", "piano", "scooter", "camel", "cow", "dragon"),
    *("unicorn", "canoe", "table"),
)
MOUNTS = (
    *("horse", "bicycle", "motorcycle", "skateboard", "elephant", "unicorn", "camel", "dragon", "zebra"),
    *("whale", "shark", "turtle", "rocket", "scooter", "kick scooter", "cow", "pig", "dinosaur", "tiger"),
    *("lion", "deer", "llama", "bear"),
)
CONTAINERS = ("cardboard box", "basket", "bathtub", "shopping cart", "bucket", "gift", "treasure chest")
CARRIED = ("food", "plant", "object", "symbol")
WORN = {
    "sunglasses": 0.3,
    "glasses": 0.1,
    "top hat": 0.2,
    "crown": 0.2,
    "bow": 0.08,
    "baseball cap": 0.06,
    "sun hat": 0.06,
}
# A face: how far down its eyes and its forehead are, as shares of its height.
FACES = {
    **{f"{name} face": (0.46, 0.16) for name in ("dog", "cow", "pig", "monkey", "horse")},
    **dict.fromkeys(("cat face", "tiger face", "fox", "lion", "bear", "panda", "koala", "mouse face"), (0.5, 0.2)),
    **dict.fromkeys(("rabbit face",), (0.6, 0.45)),
    **dict.fromkeys(("grinning face", "smiling face", "robot", "wolf", "polar bear", "hamster"), (0.45, 0.1)),
    **dict.fromkeys(("man", "woman", "boy", "girl", "person", "baby", "clown", "alien", "skull"), (0.45, 0.1)),
}


def one_of(rng, choices):
    return choices[rng.integers(len(choices))]


def pick(rng, stock, style=None, coloured=0.0, being=False):
    """Returns (index, noun, new colour or None, colour word or "") of an object or a being.

    With the probability `coloured` it gets a colour: another than its own, or the word for its own.
    """
    i = stock.being(rng, style) if being else stock.object(rng, style)
    noun, tone = stock.name(rng, i), stock.tone(i)
    if tone is None or rng.random() > coloured or stock.kinds[i] == "person" or COLOURS.keys() & noun.split():
        return i, noun, None, ""
    word = one_of(rng, list(COLOURS))
    new = stock.kinds[i] in PAINTED and word not in (tone.name, "white")
    word = word if new else tone.name
    if word is None or held_out("colour", word, noun):
        return i, noun, None, ""
    return i, noun, word if new else None, word


# Each of the functions below returns (canvas, caption), or None if its choice is held out or does not fit.


def plain(rng, stock):
    i = stock.choose(rng)
    texts, weights = zip(*stock.captions[i], strict=True)
    caption = texts[min(int(np.searchsorted(np.cumsum(weights), rng.random(), side="right")), len(texts) - 1)]
    if rng.random() < 0.15:
        style = one_of(rng, STYLE_WORDS[stock.styles[i]])
        caption += f" in {style}" if style.endswith("style") and rng.random() < 0.3 else f", {style}"
    canvas = layouts.blank()
    canvas.alpha_composite(Image.fromarray(stock.rgba[i]))
    return canvas, caption


def painted(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=1.0)
    caption = f"{word} {noun}" if rng.random() < 0.25 else phrase(noun, word)
    return (layouts.alone(stock.image(i, colour)), caption) if word else None


def counted(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=0.25)
    count = int(rng.choice(5, p=(0.08, 0.27, 0.27, 0.2, 0.18))) + 1
    uncountable = (with_article(noun) == noun and " " in noun) or (stock.kinds[i] == "person" and "ing" in noun)
    if uncountable or held_out("count", count, noun):
        return None
    number = NUMBERS[count - 1] if rng.random() < 0.85 else str(count)
    noun = noun if count == 1 or with_article(noun) == noun else plural(noun)
    caption = " ".join(part for part in (number, word, noun) if part)
    return layouts.array_of(rng, stock.image(i, colour), count), caption


def two(rng, stock):
    """Returns two different objects of one style, as `pick` gives them, or None."""
    first = pick(rng, stock, coloured=0.2)
    second = pick(rng, stock, stock.styles[first[0]], coloured=0.2)
    same = first[1] == second[1] or stock.names[first[0]] == stock.names[second[0]]
    return None if same else (first, second)


def beside(rng, stock):
    pair = two(rng, stock)
    if pair is None or held_out("beside", *sorted(choice[1] for choice in pair)):
        return None
    sizes, words = [1.0, 1.0], ["", ""]
    if rng.random() < 0.15:
        small = rng.integers(2)
        sizes[small], words = 0.5, ["big", "big"]
        words[small] = "small"
    images = (stock.image(i, colour) for i, _, colour, _ in pair)
    canvas = layouts.side_by_side(rng, *images, sizes)
    a, b = (phrase(choice[1], f"{word} {choice[3]}".strip()) for choice, word in zip(pair, words, strict=True))
    if rng.random() < 0.35:
        forms = (f"{a} to the left of {b}", f"{a} on the left and {b} on the right", f"{b} to the right of {a}")
        return canvas, one_of(rng, forms)
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    return canvas, f"{a} {one_of(rng, ('and', 'and', 'next to', 'beside'))} {b}"


def above(rng, stock):
    pair = two(rng, stock)
    if pair is None or held_out("above", pair[0][1], pair[1][1]):
        return None
    canvas = layouts.stacked(rng, *(stock.image(i, colour) for i, _, colour, _ in pair))
    a, b = (phrase(choice[1], choice[3]) for choice in pair)
    forms = (f"{a} above {b}", f"{a} above {b}", f"{b} below {a}", f"{a} over {b}", f"{b} under {a}")
    return canvas, one_of(rng, forms)


def on_top(rng, stock):
    riding = rng.random() < 0.45
    support = stock.named(rng, MOUNTS if riding else SUPPORTS)
    i, noun, colour, word = pick(rng, stock, stock.styles[support], 0.15, being=riding or rng.random() < 0.5)
    base = stock.name(rng, support)
    relation = "riding" if riding else "on"
    if noun == base or stock.names[i] == stock.names[support] or held_out(relation, noun, base):
        return None
    if not riding:
        relation = one_of(rng, ("on", "on", "on top of", *(("sitting on",) if stock.kinds[i] in BEINGS else ())))
    canvas = layouts.on(rng, stock.image(i, colour), stock.image(support), 0.22 if riding else 0.07)
    return canvas, f"{phrase(noun, word)} {relation} {phrase(base)}"


def inside(rng, stock):
    holder = stock.named(rng, CONTAINERS)
    i, noun, colour, word = pick(rng, stock, stock.styles[holder], 0.15, being=rng.random() < 0.5)
    base = stock.name(rng, holder)
    if stock.names[i] == stock.names[holder] or held_out("in", noun, base):
        return None
    canvas = layouts.on(rng, stock.image(i, colour), stock.image(holder), 0.38)
    return canvas, f"{phrase(noun, word)} in {phrase(base)}"


def holding(rng, stock):
    who = stock.being(rng)
    i, noun, colour, word = pick(rng, stock, stock.styles[who], coloured=0.25)
    name = stock.name(rng, who)
    if stock.kinds[i] not in CARRIED or held_out("with", name, noun):
        return None
    canvas = layouts.hold(stock.image(who), stock.image(i, colour))
    return canvas, f"{phrase(name)} {one_of(rng, ('with', 'with', 'holding'))} {phrase(noun, word)}"


def dressed(rng, stock):
    who = stock.choose(rng, "faces", lambda i: stock.names[i] in FACES and stock.objects[i])
    thing = list(WORN)[rng.choice(len(WORN), p=list(WORN.values()))]
    i = stock.named(rng, (thing,), stock.styles[who])
    name = stock.name(rng, who)
    if i is None or held_out("with", name, thing):
        return None
    eyes, forehead = FACES[stock.names[who]]
    if "glasses" in thing:
        canvas = layouts.wear_glasses(stock.image(who), stock.image(i), eyes)
    else:
        canvas = layouts.wear_hat(stock.image(who), stock.image(i), forehead)
    shown = "hat" if thing.endswith(("hat", "cap")) and rng.random() < 0.6 else thing
    return canvas, f"{phrase(name)} {one_of(rng, ('with', 'with', 'wearing'))} {phrase(shown)}"


def grounded(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=0.3)
    if rng.random() < 0.5:
        canvas, words, ground = grounds.plain(rng)
        if ground == (colour or (stock.tone(i) and stock.tone(i).name)):
            return None
        room, bottom, shift = 96, None, 0
    else:
        canvas, words, bottom = grounds.place(rng)
        room, shift = rng.uniform(62, 84), rng.uniform(-12, 12)
    image = layouts.fit(stock.image(i, colour), room, room)
    if grounds.hides(canvas, image):
        return None
    layouts.put(canvas, image, 64 + shift, bottom or 64 + image.height / 2)
    return canvas, f"{phrase(noun, word)} {words}"


def sized(rng, stock):
    i, noun, colour, word = pick(rng, stock, coloured=0.2)
    small = rng.random() < 0.6
    side, size = (rng.uniform(34, 48), "small") if small else (124, "big")
    if held_out("size", size, noun):
        return None
    size = one_of(rng, (size, size, *(("tiny", "little") if small else ("huge", "large"))))
    image = layouts.fit(stock.image(i, colour), side, side)
    return layouts.alone(image), phrase(noun, f"{size} {word}".strip())
