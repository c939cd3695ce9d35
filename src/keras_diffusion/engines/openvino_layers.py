"""Translates layers into OpenVINO's operations; `LOWERINGS` has one row for each kind of layer.

Inside a graph feature maps are (b, c, h, w) and tokens (b, n, c).
"""

from functools import reduce

import keras
import numpy as np
from openvino import opset13 as ov

from keras_diffusion.engines.winograd import F2X2_3X3, F4X4_3X3, TAPS
from keras_diffusion.networks import layers
from keras_diffusion.networks.keras_internals import indexing
from keras_diffusion.networks.text_encoder import ACTIVATIONS, EncoderLayer
from keras_diffusion.networks.tiny_autoencoder import SoftClip, TinyBlock

TO_INSIDE, TO_OUTSIDE = (0, 3, 1, 2), (0, 2, 3, 1)
# With fewer tiles, Winograd's kernels, which are two or four times as large, cost more memory than the time is worth.
# Larger feature maps leave the processor's cache while their tiles are cut out.
FEWEST_TILES, FEWEST_CHANNELS, LARGEST_MAP = 64, 32, 2**23


def lower(layer, *inputs):
    """Translates a layer and returns its output."""
    if type(layer) not in LOWERINGS:
        raise TypeError(
            f"OpenVINO runs the layers of this package's networks; {layer.name!r} is another one. Use another "
            f"`jit_compile`. Received: {type(layer).__name__}"
        )
    return LOWERINGS[type(layer)](layer, *inputs)


def is_map(x):
    """Tells whether x is a feature map and not tokens."""
    return len(x.shape) == 4


def constant(values):
    """Makes a float32 constant, which shares the memory of a weight if possible."""
    array = keras.ops.convert_to_numpy(values)
    return ov.constant(np.ascontiguousarray(array, "float32"), shared_memory=True)


def transpose(x, order):
    """Reorders the axes of x."""
    return ov.transpose(x, np.array(order)).output(0)


def reshape(x, shape):
    """Gives x another shape."""
    return ov.reshape(x, np.array(shape), special_zero=False).output(0)


def over_channels(vector, x):
    """Makes a constant of a weight (c,), in a shape that combines with x."""
    return constant(keras.ops.reshape(vector, (1, -1, 1, 1) if is_map(x) else (1, 1, -1)))


# ---- Keras' own layers


def dense(layer, x):
    """Translates a dense layer."""
    return affine(x, keras.ops.convert_to_numpy(layer.kernel), layer.bias if layer.use_bias else None)


def affine(x, kernel, bias):
    """Multiplies x by a kernel (c, d) and adds a bias, if there is one."""
    x = pointwise(x, kernel) if is_map(x) else ov.matmul(x, constant(kernel.T), False, True)
    if bias is not None:
        shape = (1, -1, 1, 1) if is_map(x) else (1,) * (len(x.shape) - 1) + (-1,)
        x = ov.add(x, constant(keras.ops.reshape(bias, shape)))
    return x.output(0)


def pointwise(x, kernel):
    """Applies a 1×1 convolution with a kernel (c, d)."""
    return ov.convolution(x, constant(kernel.T[:, :, None, None]), [1, 1], [0, 0], [0, 0], [1, 1])


def conv(layer, x, padding=None):
    """Translates a 3×3 convolution; `padding` is (before, after), or None for the layer's own."""
    before, after = padding or ((1, 1) if layer.padding == "same" else (0, 0))
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    bias = over_channels(layer.bias if layer.use_bias else np.zeros(layer.filters, "float32"), x)
    plain = (layer.strides, layer.padding, layer.compute_dtype) == ((1, 1), "same", "float32")
    if plain and (algorithm := fastest(x, layer.filters)):
        return winograd(algorithm, x, kernel, bias)
    kernel = constant(kernel.transpose(3, 2, 0, 1))
    x = ov.convolution(x, kernel, list(layer.strides), [before] * 2, [after] * 2, [1, 1])
    return ov.add(x, bias).output(0)


def fastest(x, filters):
    """Chooses the Winograd algorithm that pays for a convolution of x, or None."""
    batch, channels, height, width = x.shape
    if min(channels, filters) < FEWEST_CHANNELS or batch * channels * height * width > LARGEST_MAP:
        return None
    for algorithm in (F4X4_3X3, F2X2_3X3):
        if -(-height // algorithm.tile) * -(-width // algorithm.tile) >= FEWEST_TILES:
            return algorithm
    return None


def winograd(algorithm, x, kernel, bias):
    """Applies a 3×3 convolution as in winograd.py, in operations whose layout OpenVINO leaves alone.

    Every value of a tile's transform is a depthwise convolution, every product a 1×1 convolution.
    """
    tile, outputs, weights, inputs = algorithm
    _, channels, height, width = x.shape
    ends = [1 - side % -tile for side in (height, width)]
    kernels = np.kron(weights, weights) @ kernel.reshape(TAPS**2, -1)
    kernels = kernels.astype("float32").reshape(-1, *kernel.shape[2:])
    values = []
    for (i, j), kernel in zip(np.ndindex(len(inputs), len(inputs)), kernels, strict=True):
        taps = np.broadcast_to(np.outer(inputs[i], inputs[j]), (channels, 1, 1, *inputs.shape))
        values.append(pointwise(ov.group_convolution(x, constant(taps), [tile] * 2, [1, 1], ends, [1, 1]), kernel))
    rows = [[weighted_sum(row, values[j :: len(inputs)]) for j in range(len(inputs))] for row in outputs]
    cells = [ov.add(weighted_sum(column, row), bias) for row in rows for column in outputs]
    x = ov.depth_to_space(ov.concat(cells, 1), "blocks_first", tile)
    return crop(x, height, width)


def weighted_sum(weights, terms):
    """Sums terms, each times a number; it leaves out those times zero."""
    return reduce(ov.add, [ov.multiply(x, constant(w)) for w, x in zip(weights, terms, strict=True) if w])


def crop(x, height, width):
    """Cuts out x[:, :, :height, :width]."""
    if list(x.shape)[2:] != [height, width]:
        x = ov.slice(x, np.array([0, 0]), np.array([height, width]), np.array([1, 1]), np.array([2, 3]))
    return x.output(0)


def embedding(layer, x):
    """Translates an embedding."""
    return ov.gather(constant(layer.embeddings), x, np.array(0)).output(0)


def layer_norm(layer, x):
    """Translates a layer normalisation."""
    x = ov.mvn(x, np.array([-1]), True, layer.epsilon, "inside_sqrt")
    return ov.add(ov.multiply(x, over_channels(layer.gamma, x)), over_channels(layer.beta, x)).output(0)


def activation(layer, x):
    """Translates a SiLU or a ReLU."""
    known = {keras.activations.silu: ov.swish, keras.activations.relu: ov.relu}
    if layer.activation not in known:
        raise TypeError(f"Only SiLU and ReLU have rows here. Received: activation={layer.activation!r:.200}")
    return known[layer.activation](x).output(0)


def rescaling(layer, x):
    """Translates a multiplication by a number, and the addition of another."""
    x = ov.multiply(x, constant(np.float32(layer.scale)))
    return (ov.add(x, constant(np.float32(layer.offset))) if layer.offset else x).output(0)


def zero_padding(layer, x):
    """Translates the addition of zeros at the edges."""
    (top, bottom), (left, right) = layer.padding
    return ov.pad(x, np.array([0, 0, top, left]), np.array([0, 0, bottom, right]), "constant").output(0)


def nearest(layer, x):
    """Translates the enlargement of a feature map by nearest neighbours."""
    return enlarge(x, layer.size).output(0)


def enlarge(x, factors):
    """Repeats rows and columns of a feature map."""
    sides = np.array([factor * side for factor, side in zip(factors, list(x.shape)[2:], strict=True)])
    return ov.interpolate(
        x, sides, "nearest", "sizes", axes=np.array([2, 3]),
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def add(layer, terms):
    """Translates a sum."""
    first, *others = terms
    for other in others:
        first = ov.add(first, other).output(0)
    return first


def channels_of(layer, x, key):
    """Cuts out x[..., start:stop] of a feature map."""
    _, channels = key
    start, stop, step = (np.array([i]) for i in channels.indices(x.shape[1]))
    return ov.slice(x, start, stop, step, np.array([1])).output(0)


# ---- Layers of layers.py and of the text encoder


def group_norm(layer, x):
    """Translates a group normalisation, with its SiLU."""
    gamma, beta = (constant(weight) for weight in (layer.gamma, layer.beta))
    x = ov.group_normalization(x, gamma, beta, layer.groups, layer.epsilon)
    return (ov.swish(x) if layer.silu else x).output(0)


def attention(layer, x, context=None):
    """Translates an attention layer."""

    def split(x):
        return transpose(reshape(x, (x.shape[0], x.shape[1], layer.heads, -1)), (0, 2, 1, 3))

    context = x if context is None else context
    query, key, value = lower(layer.to_q, x), lower(layer.to_k, context), lower(layer.to_v, context)
    out = ov.scaled_dot_product_attention(split(query), split(key), split(value), causal=layer.causal)
    return lower(layer.to_out, reshape(transpose(out, (0, 2, 1, 3)), query.shape))


def feed_forward(layer, x):
    """Translates a GEGLU."""
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in (layer.net_0_proj.kernel, layer.net_0_proj.bias))
    halves = zip(np.split(kernel, 2, axis=-1), np.split(bias, 2), strict=True)
    x, gate = (affine(x, *half) for half in halves)  # two products: OpenVINO fuses the rest into them
    return lower(layer.net_2, ov.multiply(x, ov.gelu(gate, "erf")).output(0))


def repeat_for_guidance(x, context):
    """Repeats x for the halves of a guided batch, as `layers.repeat_for_guidance`."""
    copies = context.shape[0] // x.shape[0]
    return ov.concat([x] * copies, 0).output(0) if copies > 1 else x


def concatenate_skip(layer, x, skip):
    """Translates the concatenation with a skip connection."""
    return ov.concat([x, repeat_for_guidance(skip, x)], 1).output(0)


def add_features(layer, x, features):
    """Translates the addition of a T2I-adapter's features."""
    return ov.add(x, repeat_for_guidance(features, x)).output(0)


def transformer_block(layer, x, context):
    """Translates a transformer block."""
    x = repeat_for_guidance(ov.add(x, attention(layer.attn1, lower(layer.norm1, x))).output(0), context)
    x = ov.add(x, attention(layer.attn2, lower(layer.norm2, x), context)).output(0)
    return ov.add(x, feed_forward(layer.ff, lower(layer.norm3, x))).output(0)


def to_tokens(x):
    """Turns a feature map (b, c, h, w) into tokens (b, h · w, c)."""
    return transpose(reshape(x, (*x.shape[:2], -1)), (0, 2, 1))


def to_map(x, shape):
    """Turns tokens (b, h · w, c) into a feature map of a shape (b, c, h, w)."""
    return reshape(transpose(x, (0, 2, 1)), shape)


def spatial_transformer(layer, x, context):
    """Translates a spatial transformer."""
    tokens = lower(layer.proj_in, to_tokens(group_norm(layer.norm, x)))
    for block in layer.blocks:
        tokens = transformer_block(block, tokens, context)
    residual = repeat_for_guidance(x, context)
    return ov.add(to_map(lower(layer.proj_out, tokens), residual.shape), residual).output(0)


def spatial_attention(layer, x):
    """Translates the autoencoder's attention."""
    attended = attention(layer.attention, to_tokens(group_norm(layer.group_norm, x)))
    return ov.add(x, to_map(attended, x.shape)).output(0)


def residual_block(layer, x, time=None):
    """Translates a residual block."""
    residual = lower(layer.conv_shortcut, x) if layer.conv_shortcut else x
    x = conv(layer.conv1, group_norm(layer.norm1, x))
    if time is not None:
        time = lower(layer.time_emb_proj, time)
        x = ov.add(x, reshape(time, (*time.shape, 1, 1))).output(0)
    return ov.add(conv(layer.conv2, group_norm(layer.norm2, x)), residual).output(0)


def downsample(layer, x):
    """Translates a downsampling layer."""
    return conv(layer.conv, x, padding=layer.pad.padding[0])


def upsample(layer, x, like=None):
    """Translates an upsampling layer."""
    x = enlarge(x, layer.upsample.size)
    rows, columns = list((x if like is None else like).shape)[2:]
    return conv(layer.conv, crop(x, rows, columns))


def tiny_block(layer, x):
    """Translates a residual block of a tiny autoencoder."""
    first, second, third = layer.convs
    hidden = ov.relu(conv(second, ov.relu(conv(first, x)).output(0))).output(0)
    return ov.relu(ov.add(conv(third, hidden), x)).output(0)


def soft_clip(layer, x):
    """Translates a soft clip."""
    return ov.multiply(ov.tanh(ov.multiply(x, constant(np.float32(1 / 3)))), constant(np.float32(3))).output(0)


def encoder_layer(layer, x):
    """Translates a layer of the text encoder."""
    x = ov.add(x, attention(layer.self_attn, lower(layer.layer_norm1, x))).output(0)
    hidden = lower(layer.mlp_fc1, lower(layer.layer_norm2, x))
    quick = layer.activation is ACTIVATIONS["quick_gelu"]
    hidden = ov.swish(hidden, np.array(1.702, "float32")) if quick else ov.gelu(hidden, "erf")
    return ov.add(x, lower(layer.mlp_fc2, hidden.output(0))).output(0)


LOWERINGS = {
    layers.Dense: dense,
    layers.Conv2D: conv,
    layers.Embedding: embedding,
    keras.layers.LayerNormalization: layer_norm,
    keras.layers.Activation: activation,
    layers.Silu: activation,
    layers.Rescaling: rescaling,
    keras.layers.Add: add,
    layers.GroupNorm: group_norm,
    layers.SpatialTransformer: spatial_transformer,
    layers.SpatialAttention: spatial_attention,
    layers.ResidualBlock: residual_block,
    layers.Downsample: downsample,
    layers.Upsample: upsample,
    layers.ConcatenateSkip: concatenate_skip,
    layers.AddFeatures: add_features,
    EncoderLayer: encoder_layer,
    TinyBlock: tiny_block,
    SoftClip: soft_clip,
    keras.layers.UpSampling2D: nearest,
    keras.layers.ZeroPadding2D: zero_padding,
    indexing(): channels_of,
}
