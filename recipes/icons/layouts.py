"""Puts cut-out images on a canvas of 128×128."""

import numpy as np
from PIL import Image

SIZE = 128
GRIDS = (
    ((64, 64),),
    ((33, 64), (95, 64)),
    ((64, 34), (33, 94), (95, 94)),
    ((33, 34), (95, 34), (33, 94), (95, 94)),
    ((27, 27), (101, 27), (64, 64), (27, 101), (101, 101)),
)
ROWS = {3: ((22, 64), (64, 64), (106, 64)), 5: ((24, 40), (64, 40), (104, 40), (44, 92), (84, 92))}
ROOM = {1: 92, 2: 56, 3: 52, 4: 52, 5: 42}  # pixels for each of so many objects
ROOM_IN_ROWS = {3: 36, 5: 34}


def fit(image, width, height):
    """Returns an image scaled to fit into width × height pixels."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def put(canvas, image, centre, bottom):
    """Draws an image on the canvas; (centre, bottom) is the middle of its lower edge."""
    canvas.alpha_composite(image, (max(0, round(centre - image.width / 2)), max(0, round(bottom - image.height))))


def blank():
    return Image.new("RGBA", (SIZE, SIZE), "white")


def alone(image):
    """Returns a canvas with one image in its middle."""
    canvas = blank()
    put(canvas, image, SIZE / 2, (SIZE + image.height) / 2)
    return canvas


def array_of(rng, image, count):
    """Returns a canvas with an image `count` times, none touching another."""
    in_rows = count in ROWS and rng.random() < 0.3
    spots, room = (ROWS[count], ROOM_IN_ROWS[count]) if in_rows else (GRIDS[count - 1], ROOM[count])
    image = fit(image, room, room)
    canvas = blank()
    for x, y in spots:
        dx, dy = rng.uniform(-2, 2, 2)
        put(canvas, image, x + dx, y + dy + image.height / 2)
    return canvas


def side_by_side(rng, left, right, sizes=(1.0, 1.0)):
    """Returns a canvas with two images on one ground line, scaled by `sizes`."""
    canvas = blank()
    bottom = rng.uniform(92, 104)
    for image, x, size in zip((left, right), (33, 95), sizes, strict=True):
        put(canvas, fit(image, 58 * size, 76 * size), x + rng.uniform(-1.5, 1.5), bottom)
    return canvas


def stacked(rng, upper, lower):
    """Returns a canvas with one image above another."""
    canvas = blank()
    for image, y in ((upper, 32), (lower, 96)):
        image = fit(image, 84, 57)
        put(canvas, image, 64 + rng.uniform(-8, 8), y + image.height / 2 + rng.uniform(-2, 2))
    return canvas


def surface(image):
    """Returns how far down an image's upper edge is in the middle third of its width, in pixels."""
    alpha = np.asarray(image.getchannel("A"))
    middle = alpha[:, alpha.shape[1] // 3 : -(-2 * alpha.shape[1] // 3)].max(1)
    return int((middle > 128).argmax())


def on(rng, upper, support, sunk):
    """Returns a canvas with an image on the upper edge of another; `sunk` is the share of it that is behind the edge.

    A deeply sunk image is drawn behind its support, like a rider; another one before it.
    """
    canvas = blank()
    support, upper = fit(support, 104, 72), fit(upper, 64, 56)
    top = 122 - support.height + surface(support)
    x, bottom = 64 + rng.uniform(-5, 5), max(top + upper.height * sunk, upper.height + 2)
    if sunk > 0.1:
        put(canvas, upper, x, bottom)
    put(canvas, support, 64, 122)
    if sunk <= 0.1:
        put(canvas, upper, x, bottom)
    return canvas


def hold(who, thing):
    """Returns a canvas with a figure that has a thing at its lower right."""
    canvas = blank()
    put(canvas, fit(who, 92, 108), 52, 120)
    put(canvas, fit(thing, 44, 50), 102, 122)
    return canvas


def wear_glasses(face, glasses, eyes):
    """Returns a canvas with a face and glasses; `eyes` is how far down the eyes are, as a share of the height."""
    canvas = blank()
    face = fit(face, 112, 94)
    put(canvas, face, 64, 122)
    glasses = fit(glasses, face.width * 0.74, face.height * 0.34)
    put(canvas, glasses, 64, 122 - face.height + eyes * face.height + glasses.height / 2)
    return canvas


def wear_hat(face, hat, forehead):
    """Returns a canvas with a face and a hat; `forehead` is how far down its edge is, as a share of the height."""
    canvas = blank()
    face = fit(face, 112, 94)
    put(canvas, face, 64, 122)
    hat = fit(hat, face.width * 0.6, 46)
    put(canvas, hat, 64, max(hat.height + 1, 122 - face.height + (forehead + 0.06) * face.height))
    return canvas
