"""3×3 convolutions in a quarter of the multiplications: Winograd's F(4×4, 3×3) (Lavin & Gray 2015, arXiv:1509.09308).

It pays where a compiler fuses the copies of tiles into the products around them, as XLA does on processors.
"""

import numpy as np
from keras import ops

from keras_diffusion.operations import convolve

TILE, TAPS = 4, 3  # outputs and weights along a side
POINTS = np.array([0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])  # a quarter of the error of the usual 0, ±1, ±2
FEWEST_TILES, FEWEST_CHANNELS = 16, 32  # less does not pay for the transforms


def _matrices():
    """The one-dimensional transforms of outputs, weights and inputs: products of polynomials at points and infinity."""
    others = [np.delete(POINTS, i) for i in range(len(POINTS))]
    norms = [np.prod(point - other) for point, other in zip(POINTS, others, strict=True)]
    outputs = np.vstack([np.vander(POINTS, TILE, increasing=True), np.eye(TILE)[-1]]).T
    weights = np.vstack([np.vander(POINTS, TAPS, increasing=True) / np.array(norms)[:, None], np.eye(TAPS)[-1]])
    inputs = np.vstack([*(np.append(np.poly(other)[::-1], 0.0) for other in others), np.poly(POINTS)[::-1]])
    return outputs, weights, inputs


OUTPUT, WEIGHT, INPUT = _matrices()
OUTPUTS, WEIGHTS, INPUTS = (np.kron(matrix, matrix) for matrix in (OUTPUT, WEIGHT, INPUT))  # of two dimensions


def winograd(layer, x, kernel):
    """`operations.convolve` for float32 feature maps that are large enough for it; others are left to the backend.

    Args:
        layer: The `Conv2D`.
        x: (b, h, w, c), of static size but for b.
        kernel: (3, 3, c, d).

    Returns:
        (b, h, w, d). The error is that of a direct convolution in float32: 1.4e-5 with 320 channels of unit variance.
    """
    _, height, width, channels = ops.shape(x)
    rows, columns = -(-height // TILE), -(-width // TILE)
    small = rows * columns < FEWEST_TILES or min(channels, layer.filters) < FEWEST_CHANNELS
    if small or (layer.strides, layer.padding) != ((1, 1), "same") or layer.compute_dtype != "float32":
        return convolve(layer, x, kernel)
    side = TILE + TAPS - 1
    x = ops.pad(x, ((0, 0), (1, TILE * rows - height + 1), (1, TILE * columns - width + 1), (0, 0)))
    last = TILE * rows - TILE + 1, TILE * columns - TILE + 1
    tiles = [x[:, i : i + last[0] : TILE, j : j + last[1] : TILE] for i, j in np.ndindex(side, side)]
    tiles = _transform(INPUTS, ops.stack(tiles))  # (36, b, rows, columns, c)
    kernel = kernel + 0.0 * x[0, 1, 1, 0]  # has a compiler transform it here, not all of a network's at the start
    kernel = _transform(WEIGHTS, ops.reshape(kernel, (TAPS**2, channels, layer.filters)))
    products = ops.matmul(ops.reshape(tiles, (side**2, -1, channels)), kernel)
    x = ops.reshape(_transform(OUTPUTS, products), (TILE, TILE, -1, rows, columns, layer.filters))
    x = ops.reshape(ops.transpose(x, (2, 3, 0, 4, 1, 5)), (-1, TILE * rows, TILE * columns, layer.filters))
    return x[:, :height, :width]


def _transform(matrix, x):
    """Applies a matrix (n, m) to the first axis of (m, …)."""
    product = ops.matmul(matrix.astype("float32"), ops.reshape(x, (x.shape[0], -1)))
    return ops.reshape(product, (len(matrix), *x.shape[1:]))
