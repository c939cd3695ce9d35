"""Computes 3×3 convolutions in fewer multiplications by Winograd's algorithm (Lavin & Gray 2015, arXiv:1509.09308).

It pays if a compiler fuses the copies of tiles into the products around them, as XLA does on processors.
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_diffusion.architectures import STORED
from keras_diffusion.engines import in_turn

TAPS = 3  # weights along a side
FEWEST_TILES, FEWEST_CHANNELS = 16, 32  # smaller convolutions do not pay for the transforms


class Algorithm(NamedTuple):
    """Holds F(tile × tile, 3 × 3): the outputs along a side of a tile, and the transforms of one dimension."""

    tile: int
    output: np.ndarray
    weight: np.ndarray
    input: np.ndarray


def algorithm(*points):
    """Derives the algorithm whose transforms are products of polynomials at points and infinity."""
    tile, points = len(points) + 2 - TAPS, np.array(points)
    others = [np.delete(points, i) for i in range(len(points))]
    norms = [np.prod(point - other) for point, other in zip(points, others, strict=True)]
    return Algorithm(
        tile,
        output=np.vstack([np.vander(points, tile, increasing=True), np.eye(tile)[-1]]).T,
        weight=np.vstack([np.vander(points, TAPS, increasing=True) / np.array(norms)[:, None], np.eye(TAPS)[-1]]),
        input=np.vstack([*(np.append(np.poly(other)[::-1], 0.0) for other in others), np.poly(points)[::-1]]),
    )


F4X4_3X3 = algorithm(0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))  # a quarter of the error of the usual 0, ±1, ±2
F2X2_3X3 = algorithm(0.0, 1.0, -1.0)  # 16 products for 4 outputs instead of 36 for 16, of kernels of half the size


def winograd(layer, x):
    """Convolves large float32 feature maps by Winograd's algorithm, and leaves others to `in_turn.convolve`.

    Args:
        layer: The `Conv2D`.
        x: (b, h, w, c), of static size except for b.

    Returns:
        (b, h, w, d). The error is that of a direct convolution in float32: 1.4e-5 with 320 channels of unit variance.
    """
    _, height, width, channels = ops.shape(x)
    tile = F4X4_3X3.tile
    outputs, weights, inputs = (np.kron(matrix, matrix) for matrix in F4X4_3X3[1:])  # of two dimensions
    rows, columns = -(-height // tile), -(-width // tile)
    small = rows * columns < FEWEST_TILES or min(channels, layer.filters) < FEWEST_CHANNELS
    if small or (layer.strides, layer.padding) != ((1, 1), "same") or layer.compute_dtype != "float32":
        return in_turn.convolve(layer, x)
    side = tile + TAPS - 1
    kernel = in_turn.kernel_after(x, layer) if layer.dtype_policy.name in STORED else _depend_on(x, layer.kernel)
    x = ops.pad(x, ((0, 0), (1, tile * rows - height + 1), (1, tile * columns - width + 1), (0, 0)))
    last = tile * (rows - 1) + 1, tile * (columns - 1) + 1
    tiles = [x[:, i : i + last[0] : tile, j : j + last[1] : tile] for i, j in np.ndindex(side, side)]
    tiles = _transform(inputs, ops.stack(tiles))  # (36, b, rows, columns, c)
    kernel = ops.reshape(kernel, (TAPS**2, channels, layer.filters))
    kernel = _transform(weights, kernel)
    products = ops.matmul(ops.reshape(tiles, (side**2, -1, channels)), kernel)
    x = ops.reshape(_transform(outputs, products), (tile, tile, -1, rows, columns, layer.filters))
    x = ops.reshape(ops.transpose(x, (2, 3, 0, 4, 1, 5)), (-1, tile * rows, tile * columns, layer.filters))
    x = x[:, :height, :width]
    return ops.add(x, layer.bias) if layer.use_bias else x


def _depend_on(x, kernel):
    """Returns the kernel, but only after x (b, h, w, c) is computed.

    A compiler would otherwise transform the kernels of all layers at the start and keep them all in memory. What is
    added, 0 or 1e-30, is too small to change a weight, and finite whatever x holds.
    """
    return ops.add(kernel, 1e-30 * ops.cast(x[0, 0, 0, 0] > 0, kernel.dtype))


def _transform(matrix, x):
    """Applies a matrix (n, m) to the first axis of (m, …)."""
    product = ops.matmul(matrix.astype("float32"), ops.reshape(x, (x.shape[0], -1)))
    return ops.reshape(product, (len(matrix), *x.shape[1:]))
