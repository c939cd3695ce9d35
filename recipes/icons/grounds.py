"""Draws the grounds of scenes: colours, patterns and places."""

import numpy as np
from captions import with_article
from PIL import Image, ImageDraw

SIZE = 128
TONES = {
    "red": (222, 52, 48),
    "orange": (248, 150, 50),
    "yellow": (252, 218, 76),
    "green": (82, 176, 92),
    "blue": (70, 140, 226),
    "purple": (146, 96, 200),
    "pink": (250, 160, 200),
    "brown": (134, 92, 58),
    "black": (24, 24, 26),
    "grey": (150, 152, 156),
    "light blue": (176, 216, 246),
}


def solid(colour):
    return Image.new("RGBA", (SIZE, SIZE), tuple(colour))


def sweep(top, bottom):
    """Returns a ground whose colour changes from top to bottom."""
    share = np.linspace(0, 1, SIZE)[:, None]
    rows = (1 - share) * np.array(top) + share * np.array(bottom)
    rgb = np.broadcast_to(rows[:, None], (SIZE, SIZE, 3)).astype("uint8")
    return Image.fromarray(rgb).convert("RGBA")


def hides(canvas, image, least=70):
    """Returns whether an image's colours are too close to those of a canvas to be seen on it."""
    pixels = np.asarray(image)[::2, ::2]
    seen = pixels[pixels[..., 3] > 128][:, :3].astype("float32")
    ground = np.asarray(canvas)[::4, ::4, :3].reshape(-1, 3).mean(0)
    return bool((np.abs(seen - ground).max(-1) > least).mean() < 0.4)


def plain(rng):
    """Returns (canvas, words of the caption, its colour word) of a coloured or patterned ground."""
    word = list(TONES)[rng.integers(len(TONES))]
    tone = TONES[word]
    canvas = solid(tone)
    joint = ("on {} background", "on {} background", "with {} background")[rng.integers(3)]
    pattern = rng.random()
    if pattern < 0.7:
        return canvas, joint.format(with_article(word)), word.split()[-1]
    draw = ImageDraw.Draw(canvas)
    light = tuple(int(255 - (255 - part) * 0.35) for part in tone)
    if pattern < 0.8:
        for x in range(0, SIZE, 32):
            draw.rectangle((x, 0, x + 15, SIZE), fill=light)
        return (
            canvas,
            joint.format(with_article(f"{word} striped" if rng.random() < 0.5 else "striped")),
            word.split()[-1],
        )
    if pattern < 0.9:
        for x in range(8, SIZE, 22):
            for y in range(8, SIZE, 22):
                draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=light)
        return (
            canvas,
            joint.format(with_article(f"{word} dotted" if rng.random() < 0.5 else "dotted")),
            word.split()[-1],
        )
    for x in range(0, SIZE, 32):
        for y in range(0, SIZE, 32):
            if (x + y) // 32 % 2:
                draw.rectangle((x, y, x + 31, y + 31), fill=light)
    return canvas, joint.format("a checkered"), word.split()[-1]


def stars(draw, rng, bottom=SIZE, count=26):
    for x, y, size in zip(
        rng.uniform(0, SIZE, count), rng.uniform(0, bottom, count), rng.uniform(0.6, 1.7, count), strict=True
    ):
        draw.ellipse((x - size, y - size, x + size, y + size), fill=(255, 255, 240))


def hill(draw, colour, height=92):
    draw.ellipse((-70, height - 8, SIZE + 70, SIZE + 120), fill=colour)


def space(rng):
    canvas = sweep((12, 12, 40), (30, 18, 70))
    stars(ImageDraw.Draw(canvas), rng)
    return canvas, "in space", None


def sky(rng):
    canvas = sweep((96, 176, 244), (190, 226, 252))
    draw = ImageDraw.Draw(canvas)
    for x, y in ((18, 24), (106, 34), (24, 106), (104, 110)):
        x, y = x + rng.uniform(-6, 6), y + rng.uniform(-6, 6)
        for dx, radius in ((-9, 7), (0, 10), (9, 7)):
            draw.ellipse((x + dx - radius, y - radius * 0.8, x + dx + radius, y + radius * 0.8), fill="white")
    return canvas, "in the sky", None


def sea(rng):
    canvas = sweep((70, 170, 226), (16, 70, 150))
    draw = ImageDraw.Draw(canvas)
    for x, y, size in zip(rng.uniform(4, 124, 12), rng.uniform(4, 124, 12), rng.uniform(1, 4, 12), strict=True):
        draw.ellipse((x - size, y - size, x + size, y + size), outline=(190, 230, 250))
    return canvas, ("under water", "in the sea", "in the ocean")[rng.integers(3)], None


def grass(rng):
    canvas = sweep((130, 200, 250), (214, 238, 255))
    hill(ImageDraw.Draw(canvas), (104, 186, 84))
    return canvas, ("on the grass", "on grass", "in a field", "in a meadow")[rng.integers(4)], 112


def snow(rng):
    canvas = sweep((146, 186, 222), (206, 226, 242))
    draw = ImageDraw.Draw(canvas)
    hill(draw, (246, 250, 255))
    stars(draw, rng, 110, 30)
    return canvas, "in the snow", 112


def desert(rng):
    canvas = sweep((110, 196, 246), (250, 236, 200))
    hill(ImageDraw.Draw(canvas), (232, 192, 120))
    return canvas, "in the desert", 112


def beach(rng):
    canvas = sweep((120, 204, 250), (200, 236, 252))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 66, SIZE, SIZE), fill=(50, 150, 214))
    hill(draw, (244, 216, 150), 96)
    return canvas, ("on the beach", "at the beach")[rng.integers(2)], 114


def night(rng):
    canvas = sweep((14, 20, 60), (44, 56, 110))
    draw = ImageDraw.Draw(canvas)
    stars(draw, rng, 80, 20)
    hill(draw, (28, 54, 50))
    return canvas, "at night", 112


def moon(rng):
    canvas = solid((14, 14, 34))
    draw = ImageDraw.Draw(canvas)
    stars(draw, rng, 84, 20)
    hill(draw, (176, 178, 186))
    for x, y, size in ((20, 112, 7), (100, 106, 9), (60, 121, 6)):
        draw.ellipse((x - size, y - size / 2, x + size, y + size / 2), fill=(146, 148, 158))
    return canvas, "on the moon", 108


def forest(rng):
    canvas = sweep((170, 214, 240), (220, 240, 226))
    draw = ImageDraw.Draw(canvas)
    hill(draw, (112, 168, 86))
    for x in (8, 30, 98, 120):
        foot = 100 + rng.uniform(-4, 4)
        draw.rectangle((x - 3, foot - 20, x + 3, foot), fill=(112, 78, 50))
        for width, top in ((17, 66), (14, 78), (11, 90)):
            draw.polygon(
                [(x, foot - top - 8), (x - width, foot - top + 26), (x + width, foot - top + 26)], fill=(44, 122, 68)
            )
    return canvas, ("in a forest", "in the forest", "in the woods")[rng.integers(3)], 116


PLACES = (space, sky, sea, grass, snow, desert, beach, night, moon, forest)


def place(rng):
    """Returns (canvas, words of the caption, the height of the ground in pixels or None) of a place."""
    return PLACES[rng.integers(len(PLACES))](rng)
