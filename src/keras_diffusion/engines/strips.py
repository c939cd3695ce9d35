"""Decodes in strips of rows, which gives the same image in less memory.

A whole feature map and the one computed from it never exist at the same time.

Convolutions read one row of each neighbour, and group normalisation uses the statistics of all strips, so there are no
seams and no blending.
"""

from functools import partial
from math import prod

from keras import ops

from keras_diffusion.networks import graphs, layers
from keras_diffusion.system.memory import trim

# Largest number of values in a strip, before the resolution is doubled; smaller feature maps are decoded at once. The
# strips of Stable Diffusion are then 32 MB large: the C library returns blocks of that size as soon as they are freed.
STRIP = 2**21


class Strips:
    """Holds a feature map (b, h, w, c) as a list of its strips, from top to bottom; reading consumes the strips."""

    def __init__(self, parts):
        self.parts = parts


def decode(decoder, latents):
    """Computes `decoder(latents)`; latents (b, h, w, c) of static size → images (b, factor · h, factor · w, 3)."""
    return graphs.LayerByLayer(decoder, lambda layer: partial(_apply, layer))(latents)


def _apply(layer, x):
    """Applies a layer of the decoder to a feature map, or to its strips."""
    if type(layer) is layers.Upsample and not isinstance(x, Strips):
        parts = _split(x)
        x = Strips(parts) if len(parts) > 1 else x
    if not isinstance(x, Strips):
        return layer(x)
    trim()
    return IN_STRIPS[type(layer)](layer, x)


def _split(x):
    """Splits a feature map into strips of at most `STRIP` values, or of one row."""
    height = x.shape[1]
    count = min(height, -(-prod(x.shape) // STRIP))
    return ops.split(x, [height * i // count for i in range(1, count)], axis=1) if count > 1 else [x]


def _convolved(conv, parts, prepare):
    """Yields `conv(prepare(part))` for each part of a list, and then frees the part."""
    above = []
    for i in range(len(parts)):
        below = [part[:, :1] for part in parts[i + 1 : i + 2]]
        x = ops.concatenate([*above, parts[i], *below], axis=1)
        above = [ops.copy(parts[i][:, -1:])]
        rows, start = x.shape[1], min(i, 1)
        x = conv(prepare(x))
        factor = x.shape[1] // rows
        yield x[:, factor * start : factor * (rows - len(below))]
        del x
        parts[i] = None


def _normalised(norm, parts):
    """Returns the function that normalises one part by the statistics of all parts."""
    count = sum(part.shape[1] for part in parts)
    parts = [ops.cast(part, "float32") for part in parts]
    mean = sum(part.shape[1] / count * ops.mean(part, axis=(1, 2), keepdims=True) for part in parts)
    variance = sum(
        part.shape[1] / count * ops.mean(ops.square(part - mean), axis=(1, 2), keepdims=True) for part in parts
    )
    return lambda part: norm.normalise(part, mean, variance)


def residual_block(layer, x):
    """Applies a residual block to strips."""
    normalise, shortcut = _normalised(layer.norm1, x.parts), layer.conv_shortcut or (lambda part: part)
    hidden, parts = [], []
    for i, part in enumerate(_convolved(layer.conv1, x.parts, normalise)):
        hidden.append(part)
        parts.append(shortcut(x.parts[i]))
    trim()
    normalise = _normalised(layer.norm2, hidden)
    for i, part in enumerate(_convolved(layer.conv2, hidden, normalise)):
        parts[i] = part + parts[i]
    return Strips(parts)


def upsample(layer, x):
    """Doubles strips, and splits them again."""
    parts = [part for strip in x.parts for part in _split(strip)]
    x.parts.clear()
    return Strips(list(_convolved(layer.conv, parts, layer.upsample)))


def group_norm(layer, x):
    """Normalises strips by the statistics of all of them."""
    normalise = _normalised(layer, x.parts)
    for i, part in enumerate(x.parts):
        x.parts[i] = normalise(part)
    return x


def conv(layer, x):
    """Applies the last convolution, whose output is an image in one piece."""
    return ops.concatenate(list(_convolved(layer, x.parts, lambda part: part)), axis=1)


IN_STRIPS = {
    layers.ResidualBlock: residual_block,
    layers.Upsample: upsample,
    layers.GroupNorm: group_norm,
    layers.Conv2D: conv,
}
