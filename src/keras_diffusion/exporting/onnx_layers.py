"""Translates layers into ONNX nodes; `LOWERINGS` has one row for each kind of layer.

Inside a graph feature maps are (b, c, h, w) and tokens (b, n, c), for any b, h and w. The nodes are those of diffusers'
networks in ONNX, whose patterns ONNX Runtime fuses.
"""

import keras
import numpy as np

from keras_diffusion.networks import layers
from keras_diffusion.networks.keras_internals import indexing
from keras_diffusion.networks.text_encoder import ACTIVATIONS, EncoderLayer

MASKED = -1e4  # its exponential is 0 in float32; half precision holds it


def lower(graph, layer, *inputs):
    """Translates a layer and returns its output."""
    if type(layer) not in LOWERINGS:
        raise TypeError(
            f"The layers of this package's networks can be exported; {layer.name!r} is another one. Assign a network "
            f"of this package. Received: {type(layer).__name__}"
        )
    return LOWERINGS[type(layer)](graph, layer, *inputs)


def array(variable):
    """The values of a weight as float32."""
    return np.asarray(keras.ops.convert_to_numpy(variable), "float32")


def input_shape(layer):
    """The shape that a dense layer was built for, in which None may be any side."""
    return layer.get_build_config()["input_shape"]


def dense(graph, layer, x):
    """Translates a dense layer, which is a 1×1 convolution where its input is a feature map."""
    kernel, is_map = array(layer.kernel), len(input_shape(layer)) == 4
    bias = [graph.weight(array(layer.bias))] if layer.use_bias else []
    if is_map:
        return graph.op("Conv", x, graph.weight(kernel.T[:, :, None, None]), *bias)
    x = graph.op("MatMul", x, graph.weight(kernel))
    return graph.op("Add", x, *bias) if bias else x


def conv(graph, layer, x, padding=None):
    """Translates a 3×3 convolution; `padding` is (before, after), or None for the layer's own."""
    before, after = padding or ((1, 1) if layer.padding == "same" else (0, 0))
    weights = [graph.weight(array(layer.kernel).transpose(3, 2, 0, 1)), graph.weight(array(layer.bias))]
    return graph.op("Conv", x, *weights, strides=list(layer.strides), pads=[before, before, after, after])


def embedding(graph, layer, x):
    """Translates an embedding."""
    return graph.op("Gather", graph.weight(array(layer.embeddings)), x)


def layer_norm(graph, layer, x):
    """Translates a layer normalisation."""
    weights = [graph.weight(array(weight)) for weight in (layer.gamma, layer.beta)]
    return graph.op("LayerNormalization", x, *weights, axis=-1, epsilon=layer.epsilon)


def silu(graph, x):
    """Multiplies x by its sigmoid."""
    return graph.op("Mul", x, graph.op("Sigmoid", x))


def quick_gelu(graph, x):
    """Approximates the GELU by a sigmoid."""
    return graph.op("Mul", x, graph.op("Sigmoid", graph.op("Mul", x, graph.weight(1.702))))


def gelu(graph, x):
    """Computes the exact GELU."""
    erf = graph.op("Erf", graph.op("Div", x, graph.weight(np.sqrt(2))))
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", erf, graph.weight(1))), graph.weight(0.5))


def add(graph, layer, terms):
    """Translates a sum of two."""
    return graph.op("Add", *terms)


def unchanged(graph, layer, x, *others):
    """Leaves out the scaling of latents and the choice of their mean, which diffusers computes outside."""
    return x


def reshape(graph, x, shape):
    """Gives x a shape, in which 0 is the side of x there."""
    return graph.op("Reshape", x, graph.weight(shape, "int64"))


def group_norm(graph, layer, x):
    """Translates a group normalisation, with its SiLU."""
    ones, zeros = graph.weight(np.ones(layer.groups)), graph.weight(np.zeros(layer.groups))
    grouped = reshape(graph, x, [0, layer.groups, -1])
    grouped = graph.op("InstanceNormalization", grouped, ones, zeros, epsilon=layer.epsilon)
    normal = graph.op("Reshape", grouped, graph.op("Shape", x))
    gamma, beta = (graph.weight(array(weight)[:, None, None]) for weight in (layer.gamma, layer.beta))
    x = graph.op("Add", graph.op("Mul", normal, gamma), beta)
    return silu(graph, x) if layer.silu else x


def attention(graph, layer, x, context=None):
    """Translates an attention layer."""
    context = x if context is None else context
    width = layer.to_q.units // layer.heads

    def split(x, order):
        return graph.op("Transpose", reshape(graph, x, [0, 0, layer.heads, width]), perm=order)

    query = split(dense(graph, layer.to_q, x), [0, 2, 1, 3])
    key = split(dense(graph, layer.to_k, context), [0, 2, 3, 1])
    value = split(dense(graph, layer.to_v, context), [0, 2, 1, 3])
    scores = graph.op("Mul", graph.op("MatMul", query, key), graph.weight(width**-0.5))
    if layer.causal:
        count = input_shape(layer.to_q)[1]
        scores = graph.op("Add", scores, graph.weight(np.triu(np.full((count, count), MASKED), 1)))
    out = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    out = graph.op("Transpose", out, perm=[0, 2, 1, 3])
    return dense(graph, layer.to_out, reshape(graph, out, [0, 0, layer.to_q.units]))


def feed_forward(graph, layer, x):
    """Translates a GEGLU."""
    x, gate = graph.op("Split", dense(graph, layer.net_0_proj, x), outputs=2, axis=-1)
    return dense(graph, layer.net_2, graph.op("Mul", x, gelu(graph, gate)))


def transformer_block(graph, layer, x, context):
    """Translates a transformer block."""
    x = graph.op("Add", x, attention(graph, layer.attn1, layer_norm(graph, layer.norm1, x)))
    x = graph.op("Add", x, attention(graph, layer.attn2, layer_norm(graph, layer.norm2, x), context))
    return graph.op("Add", x, feed_forward(graph, layer.ff, layer_norm(graph, layer.norm3, x)))


def to_tokens(graph, x):
    """Turns a feature map (b, c, h, w) into tokens (b, h · w, c)."""
    return graph.op("Transpose", reshape(graph, x, [0, 0, -1]), perm=[0, 2, 1])


def to_map(graph, x, like):
    """Turns tokens (b, h · w, c) into a feature map of the shape of another one."""
    return graph.op("Reshape", graph.op("Transpose", x, perm=[0, 2, 1]), graph.op("Shape", like))


def spatial_transformer(graph, layer, x, context):
    """Translates a spatial transformer."""
    tokens = to_tokens(graph, dense(graph, layer.proj_in, group_norm(graph, layer.norm, x)))
    for block in layer.blocks:
        tokens = transformer_block(graph, block, tokens, context)
    return graph.op("Add", dense(graph, layer.proj_out, to_map(graph, tokens, x)), x)


def spatial_attention(graph, layer, x):
    """Translates the autoencoder's attention."""
    attended = attention(graph, layer.attention, to_tokens(graph, group_norm(graph, layer.group_norm, x)))
    return graph.op("Add", x, to_map(graph, attended, x))


def residual_block(graph, layer, x, time=None):
    """Translates a residual block."""
    residual = dense(graph, layer.conv_shortcut, x) if layer.conv_shortcut else x
    x = conv(graph, layer.conv1, group_norm(graph, layer.norm1, x))
    if time is not None:
        time = dense(graph, layer.time_emb_proj, time)
        x = graph.op("Add", x, graph.op("Unsqueeze", time, graph.weight([2, 3], "int64")))
    return graph.op("Add", conv(graph, layer.conv2, group_norm(graph, layer.norm2, x)), residual)


def downsample(graph, layer, x):
    """Translates a downsampling layer."""
    return conv(graph, layer.conv, x, padding=layer.pad.padding[0])


def upsample(graph, layer, x, like=None):
    """Translates an upsampling layer."""
    if like is None:
        sizes = ["", graph.weight([1, 1, 2, 2])]
    else:
        sides = [graph.op("Shape", x, end=2), graph.op("Shape", like, start=2)]
        sizes = ["", "", graph.op("Concat", *sides, axis=0)]
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return conv(graph, layer.conv, graph.op("Resize", x, *sizes, **nearest))


def concatenate_skip(graph, layer, x, skip):
    """Translates the concatenation with a skip connection."""
    return graph.op("Concat", x, skip, axis=1)


def encoder_layer(graph, layer, x):
    """Translates a layer of the text encoder."""
    x = graph.op("Add", x, attention(graph, layer.self_attn, layer_norm(graph, layer.layer_norm1, x)))
    hidden = dense(graph, layer.mlp_fc1, layer_norm(graph, layer.layer_norm2, x))
    activate = quick_gelu if layer.activation is ACTIVATIONS["quick_gelu"] else gelu
    return graph.op("Add", x, dense(graph, layer.mlp_fc2, activate(graph, hidden)))


LOWERINGS = {
    layers.Dense: dense,
    layers.Conv2D: conv,
    layers.Embedding: embedding,
    keras.layers.LayerNormalization: layer_norm,
    layers.Silu: lambda graph, layer, x: silu(graph, x),
    layers.Rescaling: unchanged,
    keras.layers.Add: add,
    layers.GroupNorm: group_norm,
    layers.SpatialTransformer: spatial_transformer,
    layers.SpatialAttention: spatial_attention,
    layers.ResidualBlock: residual_block,
    layers.Downsample: downsample,
    layers.Upsample: upsample,
    layers.ConcatenateSkip: concatenate_skip,
    EncoderLayer: encoder_layer,
    indexing(): unchanged,
}
