"""Cuts images into overlapping tiles, and joins what is made of each without seams."""

from itertools import product

import numpy as np

BLEND = 16  # pixels over which neighbours pass into each other


class Axis:
    """Places tiles along one side of an image, and weighs them where they overlap.

    Args:
        length: Pixels along the side, a multiple of `multiple`.
        tile: The largest length of a tile; all tiles have one length, the shortest that their number allows.
        context: Pixels at each end of a tile that are read but not used, except at the ends of the side.
        multiple: All starts and lengths are multiples of it.

    Attributes:
        starts: The first pixel of each tile, a list of int.
        tile: The length of the tiles.
    """

    def __init__(self, length, tile, context, multiple=1):
        self.length, self._context = length, context
        self.starts, self.tile = [0], length
        if length > tile:
            overlap = 2 * context + BLEND
            count = -(-(length - overlap) // (tile - overlap))
            side = -(-(length + (count - 1) * overlap) // count)
            self.tile = min(length, side + -side % multiple)
            spread = np.linspace(0, length - self.tile, count).astype(int)
            self.starts = [int(start) for start in spread // multiple * multiple]

    def weights(self, start, scale):
        """Returns the weights of the tile at a start, float32 (scale · tile,) from 0 to 1."""
        place = (np.arange(scale * self.tile) + 0.5) / scale - self._context
        rising = np.inf if start == 0 else place
        falling = np.inf if start + self.tile == self.length else self.tile - 2 * self._context - place
        return (np.minimum(rising, falling) / BLEND).clip(0, 1).astype("float32") * np.ones_like(place, "float32")

    def total(self, scale):
        """Returns the sum of the weights of all tiles, float32 (scale · length,)."""
        total = np.zeros(scale * self.length, "float32")
        for start in self.starts:
            total[scale * start : scale * (start + self.tile)] += self.weights(start, scale)
        return total


def enlarge(image, run, scale, tile, context, multiple=1, callback=lambda done, count: None):
    """Enlarges an image tile by tile.

    Args:
        image: float32 (h, w, c).
        run: Function of a tile (th, tw, c), with multiples of `multiple`, that returns it enlarged by `scale`.
        scale: The factor by which `run` enlarges each side.
        tile: The largest side of a tile, in pixels of the image.
        context: Pixels around the used part of a tile. If `run` reaches no further, the result is that of the whole
            image.
        multiple: See `run`; the image is extended to multiples by reflection.
        callback: Function of the number of tiles done and the number of all, called after each.

    Returns:
        A float32 array (scale · h, scale · w, c).
    """
    height, width, channels = image.shape
    image = np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="symmetric")
    rows, columns = (Axis(side, tile, context, multiple) for side in image.shape[:2])
    enlarged = np.zeros((scale * rows.length, scale * columns.length, channels), "float32")
    corners = list(product(rows.starts, columns.starts))
    for done, (top, left) in enumerate(corners, start=1):
        part = run(image[top : top + rows.tile, left : left + columns.tile])
        weights = rows.weights(top, scale)[:, None, None] * columns.weights(left, scale)[:, None]
        top, left = scale * top, scale * left
        enlarged[top : top + part.shape[0], left : left + part.shape[1]] += weights * part
        callback(done, len(corners))
    enlarged /= rows.total(scale)[:, None, None]
    enlarged /= columns.total(scale)[:, None]
    return enlarged[: scale * height, : scale * width]
