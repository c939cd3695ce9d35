"""Defines how layers attend, convolve and so on, and lets engines and adapters replace that."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import keras
from keras import ops

SCORES = 2**20  # attention scores in memory at a time: 4 MB, which a processor's cache holds


def attend(layer, query, key, value):
    """Attends from (b, n, heads, d) to (b, m, heads, d), as `ops.dot_product_attention`, with few scores in memory.

    If n · m is large, it computes one head and one group of queries at a time.
    """
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query * query.shape[-1] ** -0.5, key, value))
    n, m, width = query.shape[2], key.shape[2], query.shape[3]
    if layer.causal or None in (n, m) or n * m < SCORES:
        out = _weighted_sum(query, key, value, layer.causal)
    else:
        groups = -(-n * m // SCORES)
        size = -(-n // groups)
        rows = ops.pad(query, ((0, 0), (0, 0), (0, groups * size - n), (0, 0)))
        shapes = (groups, size, width), (m, width), (m, width)
        heads = [ops.reshape(x, (-1, *shape)) for x, shape in zip((rows, key, value), shapes, strict=True)]
        out = ops.map(lambda head: ops.map(lambda rows: _weighted_sum(rows, *head[1:]), head[0]), heads)
        out = ops.reshape(out, (-1, query.shape[1], groups * size, width))[:, :, :n]
    return ops.transpose(out, (0, 2, 1, 3))


def _weighted_sum(query, key, value, is_causal=False):
    """Weights the values (…, m, d) by the float32 softmax of the scores (…, n, m)."""
    scores = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), "float32")
    if is_causal:
        positions = ops.arange(ops.shape(query)[-2])
        scores = ops.where(positions[:, None] < positions[None, :], -1e9, scores)
    weights = ops.softmax(scores) if scores.shape[-1] != 1 else ops.ones_like(scores)  # Keras warns of one key
    return ops.matmul(ops.cast(weights, value.dtype), value)


def convolve(layer, x):
    """Convolves x (b, h, w, c) by a `Conv2D`."""
    return keras.layers.Conv2D.call(layer, x)


def project(layer, x):
    """Multiplies x (…, c) by the matrix of a `Dense`, and adds its bias."""
    return keras.layers.Dense.call(layer, x)


def embed(layer, tokens):
    """Looks up the rows of an `Embedding` for integers (…,)."""
    return keras.layers.Embedding.call(layer, tokens)


def feed(layer, x):
    """Applies a `FeedForward` to x (b, n, c)."""
    x, gate = ops.split(layer.net_0_proj(x), 2, axis=-1)
    return layer.net_2(x * ops.gelu(gate, approximate=False))


def group_norm(layer, x):
    """Normalises a float32 feature map x (b, h, w, c) by a `GroupNorm`."""
    return layer.normalise(x, *operation("moments")(x))


def moments(x):
    """Returns the mean and variance (b, 1, 1, c) of a float32 feature map (b, h, w, c)."""
    mean = ops.mean(x, axis=(1, 2), keepdims=True)
    return mean, ops.mean(ops.square(x - mean), axis=(1, 2), keepdims=True)  # ops.moments cancels on some backends


def silu(x):
    """Multiplies x by its sigmoid."""
    return ops.silu(x)


def modulate(x, scale, shift, silu):
    """Computes x · scale + shift, followed by a SiLU if `silu` is true."""
    x = x * scale + shift
    return operation("silu")(x) if silu else x


def block(layer, *inputs):
    """Computes a `ResidualBlock` or a `TransformerBlock` from feature maps or tokens x, and what goes with them."""
    return layer.compute(*inputs)


DEFAULT = {
    function.__name__: function
    for function in (attend, convolve, project, embed, feed, group_norm, moments, silu, modulate, block)
}
_replaced = ContextVar("replaced", default=MappingProxyType({}))


def operation(name):
    """Returns the function that layers call for an operation.

    Args:
        name: A name in `DEFAULT`, such as "attend".

    Returns:
        The replacement given to the innermost `replace_operations`, or the function in `DEFAULT`. Both take the same
        arguments.

    Raises:
        KeyError: If there is no such name.
    """
    return _replaced.get().get(name) or DEFAULT[name]


@contextmanager
def replace_operations(**functions: Callable) -> Iterator[None]:
    """Replaces operations of the layers that are called inside it.

    Args:
        **functions: The replacements by their names in `DEFAULT`, such as `attend=function`. Each takes the arguments
            of the function there (the layer comes first, if it takes one) and returns a result of the same shape.

    Raises:
        TypeError: If there is no such name in `DEFAULT`.
    """
    if unknown := functions.keys() - DEFAULT.keys():
        raise TypeError(f"Layers {', '.join(DEFAULT)}. Received: {', '.join(sorted(unknown))}")
    token = _replaced.set({**_replaced.get(), **functions})
    try:
        yield
    finally:
        _replaced.reset(token)
