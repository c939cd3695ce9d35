"""Chooses the sizes to which images of different shapes are scaled and cut, so that little of them is lost.

Source: aspect ratio bucketing of NovelAI and of `make_bucket_resolutions` in kohya-ss/sd-scripts.
"""

import itertools
import math
from collections import Counter

LONGEST = 2  # times the side of a square of the same area, for a ratio of 4 : 1 at most


def candidates(size, step):
    """Lists sizes whose area is at most that of `size`, and `size` itself.

    Args:
        size: (height, width) in pixels.
        step: Sides are multiples of it.

    Returns:
        A sorted list of (height, width). Of each height, the width is the largest one possible, and the reverse.
    """
    area = math.prod(size)
    sides = range(step, int(LONGEST * math.sqrt(area)) + 1, step)
    pairs = ((side, min(area // side // step * step, sides[-1])) for side in sides)
    pairs = [(side, other) for side, other in pairs if LONGEST * min(side, other) >= math.sqrt(area)]
    return sorted({tuple(size), *pairs, *(pair[::-1] for pair in pairs)})


def choose(shapes, size, step, most):
    """Chooses a size for each image: that whose aspect ratio is nearest.

    Args:
        shapes: List of (height, width), those of the images.
        size: (height, width) in pixels, see `candidates`.
        step: Sides are multiples of it.
        most: Number of sizes at most. Beyond it, those with the fewest images are left out; 1 leaves `size` alone.

    Returns:
        A list with the (height, width) of each image.
    """
    sizes = candidates(size, step) if most > 1 else [tuple(size)]
    while True:
        chosen = [min(sizes, key=lambda other: _distance(shape, other)) for shape in shapes]
        images = Counter(chosen)
        if len(images) <= most:
            return chosen
        sizes = sorted(images, key=lambda own: (-images[own], _distance(size, own), own))[:-1]


def _distance(a, b):
    """Returns the logarithm of the larger aspect ratio divided by the smaller."""
    return abs(math.log(a[0] * b[1] / (a[1] * b[0])))


def unlike(sizes):
    """Returns two of the sizes that differ in both sides if any do; both may be the same."""
    pairs = itertools.combinations_with_replacement(sizes, 2)
    return max(pairs, key=lambda pair: sum(a != b for a, b in zip(*pair, strict=True)))
