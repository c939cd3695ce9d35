"""How layers attend, convolve and so on, and how an engine or an adapter has them do it in another way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import keras
from keras import ops

SCORES = 2**20  # attention scores in memory at a time: 4 MB, which a processor's cache holds


def attend(layer, query, key, value):
    """`ops.dot_product_attention` of (b, n, heads, d) over (b, m, heads, d), with few scores in memory at a time.

    Where n · m is large, it goes through the heads, and for each through groups of queries.
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
    """The values (…, m, d) weighted by the softmax of the scores (…, n, m), which is float32."""
    scores = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), "float32")
    if is_causal:
        positions = ops.arange(ops.shape(query)[-2])
        scores = ops.where(positions[:, None] < positions[None, :], -1e9, scores)
    weights = ops.softmax(scores) if scores.shape[-1] != 1 else ops.ones_like(scores)  # Keras warns of one key
    return ops.matmul(ops.cast(weights, value.dtype), value)


def convolve(layer, x):
    """What a `Conv2D` computes of x (b, h, w, c)."""
    return keras.layers.Conv2D.call(layer, x)


def project(layer, x):
    """What a `Dense` computes of x (…, c)."""
    return keras.layers.Dense.call(layer, x)


def feed(layer, x):
    """What a `FeedForward` computes of x (b, n, c)."""
    x, gate = ops.split(layer.net_0_proj(x), 2, axis=-1)
    return layer.net_2(x * ops.gelu(gate, approximate=False))


def moments(x):
    """The mean and variance (b, 1, 1, c) of a float32 feature map (b, h, w, c)."""
    mean = ops.mean(x, axis=(1, 2), keepdims=True)
    return mean, ops.mean(ops.square(x - mean), axis=(1, 2), keepdims=True)  # ops.moments cancels on some backends


def modulate(x, scale, shift, silu):
    """x · scale + shift, and a SiLU of it if so told."""
    x = x * scale + shift
    return ops.silu(x) if silu else x


PLAIN = {function.__name__: function for function in (attend, convolve, project, feed, moments, modulate)}
_replaced = ContextVar("replaced", default=MappingProxyType({}))


def how_to(name):
    """Gives the function by which layers compute here.

    Args:
        name: What they compute, a name in `PLAIN` such as "attend".

    Returns:
        The one that `replace_operations` was given last, or that of `PLAIN`; both take the same arguments.

    Raises:
        KeyError: If there is no such name.
    """
    return _replaced.get().get(name) or PLAIN[name]


@contextmanager
def replace_operations(**functions: Callable) -> Iterator[None]:
    """Has the layers called inside it compute in other ways.

    Args:
        **functions: By their names in `PLAIN`, such as `attend=function`: each takes the arguments of the function
            there, the layer first where that has one, and returns a tensor of the same shape.

    Raises:
        TypeError: If there is no such name in `PLAIN`.
    """
    if unknown := functions.keys() - PLAIN.keys():
        raise TypeError(f"Layers {', '.join(PLAIN)}. Received: {', '.join(sorted(unknown))}")
    token = _replaced.set({**_replaced.get(), **functions})
    try:
        yield
    finally:
        _replaced.reset(token)
