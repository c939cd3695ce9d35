"""How layers attend and convolve, and how an engine or an adapter has them do it in another way."""

from contextlib import contextmanager
from contextvars import ContextVar

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


def attend_at_once(layer, query, key, value):
    """The same in one operation of the backend."""
    return ops.dot_product_attention(query, key, value, is_causal=layer.causal)


convolve = keras.layers.Conv2D.convolution_op  # of a layer, a feature map (b, h, w, c) and a kernel

_attention = ContextVar("attention", default=attend)
_convolution = ContextVar("convolution", default=convolve)
attending, convolving = _attention.get, _convolution.get  # give the functions that layers use here


def attention(function):
    """Has the layers called inside it attend in another way, with the arguments of `attend`, an `Attention` first."""
    return _replaced(_attention, function)


def convolution(function):
    """Has the layers called inside it use another convolution, with the arguments of `convolve`."""
    return _replaced(_convolution, function)


@contextmanager
def _replaced(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
