"""Defines the layers that several networks share: attention, residual blocks, normalisation and resampling.

Every layer builds its own parts and states its output shape, so that Keras need not trace it to build a model.
Layer names are those of diffusers' modules: the path of a variable is its name in a checkpoint.
"""

import keras
from keras import ops

from keras_diffusion.networks.int8 import StoredKernel
from keras_diffusion.networks.network import kernel_initializer
from keras_diffusion.networks.operations import operation


def dense(units, name, use_bias=True):
    """Makes a dense layer, which also stands for every 1×1 convolution."""
    return Dense(units, use_bias=use_bias, kernel_initializer=kernel_initializer.get(), name=name)


def conv(channels, name, strides=1, padding="same", use_bias=True):
    """Makes a 3×3 convolution."""
    options = {"use_bias": use_bias, "kernel_initializer": kernel_initializer.get(), "name": name}
    return Conv2D(channels, 3, strides, padding, **options)


class Dense(StoredKernel, keras.layers.Dense):
    """Multiplies by a matrix, as the operation "project" does.

    The class keeps the name of Keras' own, because .weights.h5 files contain it.
    """

    def call(self, x):
        return operation("project")(self, x)


class Conv2D(StoredKernel, keras.layers.Conv2D):
    """Convolves, as the operation "convolve" does; it keeps the name of Keras' own, as `Dense`."""

    def call(self, x):
        return operation("convolve")(self, x)


class Embedding(keras.layers.Embedding):
    """Looks up rows of a table, as the operation "embed" does; it keeps the name of Keras' own, as `Dense`."""

    def call(self, x):
        return operation("embed")(self, x)


class Rescaling(keras.layers.Rescaling):
    """Multiplies by a number, without the tensor that Keras makes in every call: a CUDA graph cannot record that."""

    def call(self, x):
        x = x * self.scale
        return x + self.offset if self.offset else x


def embedding(size, width, name):
    """Makes a learned embedding, which turns integers (…,) into vectors (…, width)."""
    initializer = kernel_initializer.get()
    if initializer == "glorot_uniform":
        initializer = keras.initializers.RandomNormal(stddev=0.02)
    return Embedding(size, width, embeddings_initializer=initializer, name=name)


def layer_norm(name):
    """Makes the layer normalisation of CLIP and of the transformers, with float32 statistics."""
    return keras.layers.LayerNormalization(epsilon=1e-5, name=name)


class Silu(keras.layers.Activation):
    """Multiplies its input by its sigmoid (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, **kwargs):
        super().__init__("silu", **kwargs)

    def call(self, x):
        return operation("silu")(x)


class GroupNorm(keras.layers.Layer):
    """Normalises groups of channels (Wu & He 2018) of feature maps (b, h, w, c) in float32, with an optional SiLU."""

    def __init__(self, groups, epsilon=1e-5, silu=False, **kwargs):
        super().__init__(**kwargs)
        self.groups, self.epsilon, self.silu = groups, epsilon, silu

    def build(self, x_shape):
        self.gamma = self.add_weight(shape=x_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=x_shape[-1:], initializer="zeros", name="beta")

    def call(self, x):
        return operation("group_norm")(self, ops.cast(x, "float32"))

    def normalise(self, x, mean, variance):
        """Normalises a part of a float32 feature map by the mean and variance (b, 1, 1, c) of the whole."""
        channels = x.shape[-1]
        grouped = (-1, 1, 1, self.groups, channels // self.groups)
        mean, variance = ops.reshape(mean, grouped), ops.reshape(variance, grouped)
        group_mean = ops.mean(mean, -1, keepdims=True)  # (b, 1, 1, g, 1)
        group_variance = ops.mean(variance + ops.square(mean - group_mean), -1, keepdims=True)
        gamma = ops.reshape(ops.cast(self.gamma, "float32"), grouped[1:])
        beta = ops.reshape(ops.cast(self.beta, "float32"), grouped[1:])
        scale = gamma * ops.rsqrt(group_variance + self.epsilon)
        shift = beta - group_mean * scale
        scale, shift = (ops.reshape(part, (-1, 1, 1, channels)) for part in (scale, shift))
        return ops.cast(operation("modulate")(x, scale, shift, self.silu), self.compute_dtype)

    def compute_output_shape(self, x_shape):
        return x_shape


class Attention(keras.layers.Layer):
    """Attends with several heads (Vaswani et al. 2017) from x (b, n, c) to itself or to a context (b, m, d).

    In the cross-attention of a diffusion model, `place` is its number among the `crossings` of the architecture.
    """

    def __init__(self, heads, qkv_bias=False, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.qkv_bias, self.causal, self.place = heads, qkv_bias, causal, None

    def build(self, x_shape, context_shape=None):
        width = x_shape[-1]
        self.to_q, self.to_k, self.to_v = (dense(width, name, self.qkv_bias) for name in ("to_q", "to_k", "to_v"))
        self.to_out = dense(width, "to_out")
        self.to_q.build(x_shape)
        self.to_k.build(context_shape or x_shape)
        self.to_v.build(context_shape or x_shape)
        self.to_out.build(x_shape)

    def call(self, x, context=None):
        context = x if context is None else context
        query, key, value = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        out = operation("attend")(self, query, key, value)
        return self.to_out(ops.reshape(out, ops.shape(x)))

    def split(self, x):
        """Splits (b, n, c) into heads: (b, n, heads, c / heads)."""
        return ops.reshape(x, (-1, ops.shape(x)[1], self.heads, x.shape[-1] // self.heads))

    def compute_output_shape(self, x_shape, context_shape=None):
        return x_shape


def repeat_for_guidance(x, context):
    """Repeats x (b, …) for a context (k · b, …).

    Up to this layer, the two halves of a guided batch are identical, so they are computed once.
    """
    copies = (context.shape[0] or 1) // (x.shape[0] or 1)
    return ops.concatenate([x] * copies) if copies > 1 else x


class FeedForward(keras.layers.Layer):
    """Applies GEGLU (Shazeer 2020): the exact GELU of one half of a dense layer gates the other half."""

    def build(self, x_shape):
        width = x_shape[-1]
        self.net_0_proj, self.net_2 = dense(8 * width, "net_0_proj"), dense(width, "net_2")
        self.net_0_proj.build(x_shape)
        self.net_2.build((*x_shape[:-1], 4 * width))

    def call(self, x):
        return operation("feed")(self, x)

    def compute_output_shape(self, x_shape):
        return x_shape


class TransformerBlock(keras.layers.Layer):
    """Applies self-attention, cross-attention and a feed-forward layer, each normalised before and with a residual."""

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.norm1, self.attn1 = layer_norm("norm1"), Attention(heads, name="attn1")
        self.norm2, self.attn2 = layer_norm("norm2"), Attention(heads, name="attn2")
        self.norm3, self.ff = layer_norm("norm3"), FeedForward(name="ff")

    def build(self, x_shape, context_shape):
        for layer in (self.norm1, self.attn1, self.norm2, self.norm3, self.ff):
            layer.build(x_shape)
        self.attn2.build(x_shape, context_shape)

    def call(self, x, context):
        return operation("block")(self, x, context)

    def compute(self, x, context):
        x = repeat_for_guidance(x + self.attn1(self.norm1(x)), context)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))

    def compute_output_shape(self, x_shape, context_shape):
        return x_shape


class SpatialTransformer(keras.layers.Layer):
    """Applies transformer blocks to the positions of a feature map (b, h, w, c) and to the context (b, m, d)."""

    def __init__(self, heads, depth, groups, **kwargs):
        super().__init__(**kwargs)
        self.norm = GroupNorm(groups, epsilon=1e-6, name="norm")
        self.blocks = [TransformerBlock(heads, name=f"transformer_blocks_{i}") for i in range(depth)]

    def build(self, x_shape, context_shape):
        channels = x_shape[-1]
        self.proj_in, self.proj_out = dense(channels, "proj_in"), dense(channels, "proj_out")
        for layer in (self.norm, self.proj_in, self.proj_out):
            layer.build(x_shape)
        for block in self.blocks:
            block.build((x_shape[0], None, channels), context_shape)

    def call(self, x, context):
        residual, (_, height, width, channels) = repeat_for_guidance(x, context), ops.shape(x)
        x = self.proj_in(self.norm(x))
        x = ops.reshape(x, (-1, height * width, channels))
        for block in self.blocks:
            x = block(x, context)
        x = ops.reshape(x, (-1, height, width, channels))
        return self.proj_out(x) + residual

    def compute_output_shape(self, x_shape, context_shape):
        return x_shape


class SpatialAttention(keras.layers.Layer):
    """Attends with one head over the positions of a feature map (b, h, w, c) of the autoencoder."""

    def __init__(self, groups, **kwargs):
        super().__init__(**kwargs)
        self.group_norm = GroupNorm(groups, epsilon=1e-6, name="group_norm")
        self.attention = Attention(heads=1, qkv_bias=True, name="attention")

    def build(self, x_shape):
        self.group_norm.build(x_shape)
        self.attention.build((x_shape[0], None, x_shape[-1]))

    def call(self, x):
        _, height, width, channels = ops.shape(x)
        attended = self.attention(ops.reshape(self.group_norm(x), (-1, height * width, channels)))
        return x + ops.reshape(attended, (-1, height, width, channels))

    def compute_output_shape(self, x_shape):
        return x_shape


class ResidualBlock(keras.layers.Layer):
    """Applies two normalised 3×3 convolutions and a residual; the diffusion model adds its timestep in between."""

    def __init__(self, channels, groups, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.norm1, self.conv1 = GroupNorm(groups, epsilon, silu=True, name="norm1"), conv(channels, "conv1")
        self.norm2, self.conv2 = GroupNorm(groups, epsilon, silu=True, name="norm2"), conv(channels, "conv2")
        self.time_emb_proj = self.conv_shortcut = None

    def build(self, x_shape, time_shape=None):
        inner_shape = self.compute_output_shape(x_shape)
        self.norm1.build(x_shape)
        self.conv1.build(x_shape)
        self.norm2.build(inner_shape)
        self.conv2.build(inner_shape)
        if time_shape:
            self.time_emb_proj = dense(self.channels, "time_emb_proj")
            self.time_emb_proj.build(time_shape)
        if x_shape[-1] != self.channels:
            self.conv_shortcut = dense(self.channels, "conv_shortcut")
            self.conv_shortcut.build(x_shape)

    def call(self, x, time=None):
        return operation("block")(self, x, time)

    def compute(self, x, time=None):
        residual = self.conv_shortcut(x) if self.conv_shortcut else x
        x = self.conv1(self.norm1(x))
        if time is not None:
            x, residual = (repeat_for_guidance(part, time) for part in (x, residual))
            x = x + self.time_emb_proj(time)[:, None, None]
        return self.conv2(self.norm2(x)) + residual

    def compute_output_shape(self, x_shape, time_shape=None):
        return (*x_shape[:-1], self.channels)


class Downsample(keras.layers.Layer):
    """Halves a feature map by a 3×3 convolution of stride 2, after zero padding by (before, after) on each axis."""

    def __init__(self, channels, padding, **kwargs):
        super().__init__(**kwargs)
        self.pad = keras.layers.ZeroPadding2D((padding, padding))
        self.conv = conv(channels, "conv", strides=2, padding="valid")

    def build(self, x_shape):
        self.conv.build(self.pad.compute_output_shape(x_shape))

    def call(self, x):
        return self.conv(self.pad(x))

    def compute_output_shape(self, x_shape):
        return self.conv.compute_output_shape(self.pad.compute_output_shape(x_shape))


class AddResidual(keras.layers.Layer):
    """Adds a residual (k · b, h, w, c) to x (b, h, w, c) or (k · b, h, w, c)."""

    def call(self, x, residual):
        return repeat_for_guidance(x, residual) + residual

    def compute_output_shape(self, x_shape, residual_shape):
        return residual_shape


class ScaleResidual(keras.layers.Layer):
    """Multiplies a residual (b, h, w, c) by one scale (1,), or by one for each row of a guided batch, (k · b,)."""

    def call(self, residual, scale):
        return ops.reshape(scale, (-1, 1, 1, 1)) * repeat_for_guidance(residual, scale)

    def compute_output_shape(self, residual_shape, scale_shape):
        return residual_shape


class ConcatenateSkip(keras.layers.Layer):
    """Appends the channels of a skip connection, (b, h, w, d) to x (b, h, w, c) or (k · b, h, w, c)."""

    def call(self, x, skip):
        return ops.concatenate([x, repeat_for_guidance(skip, x)], axis=-1)

    def compute_output_shape(self, x_shape, skip_shape):
        return (*x_shape[:-1], x_shape[-1] + skip_shape[-1])


class AddFeatures(keras.layers.Layer):
    """Adds a feature map (b, h, w, c) to x (b, h, w, c) or (k · b, h, w, c)."""

    def call(self, x, features):
        return x + repeat_for_guidance(features, x)

    def compute_output_shape(self, x_shape, features_shape):
        return x_shape


class Upsample(keras.layers.Layer):
    """Doubles a feature map by nearest neighbours, cuts it to the size of `like`, and convolves it."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.upsample = keras.layers.UpSampling2D(2)
        self.conv = conv(channels, "conv")

    def build(self, x_shape, like_shape=None):
        self.conv.build(x_shape)

    def call(self, x, like=None):
        x = self.upsample(x)
        if like is not None:
            _, height, width, _ = ops.shape(like)
            x = x[:, :height, :width]
        return self.conv(x)

    def compute_output_shape(self, x_shape, like_shape=None):
        return (*(like_shape or self.upsample.compute_output_shape(x_shape))[:3], self.conv.filters)
