"""Defines networks that enlarge images: RRDBNet, of ESRGAN and Real-ESRGAN, and the compact SRVGGNet.

Names of layers are those of modules in BasicSR, which wrote the published files.
"""

from dataclasses import dataclass

import keras
from keras import ops

from keras_diffusion.networks.layers import conv
from keras_diffusion.networks.network import Network, Shape, construction


@dataclass(frozen=True)
class RRDBArchitecture(Shape):
    """The shape of an `RRDBNet`.

    Args:
        blocks: Number of residual blocks, each of three dense blocks.
        channels: Width of the feature maps.
        growth: How many channels each convolution adds in a dense block.
        doublings: How many times the feature maps are doubled in size.
        unshuffle: Pixels along a side that first become channels of one.
    """

    blocks: int = 23
    channels: int = 64
    growth: int = 32
    doublings: int = 2
    unshuffle: int = 1

    @property
    def scale(self):
        """The factor by which the network enlarges each side."""
        return 2**self.doublings // self.unshuffle

    @property
    def reach(self):
        """The largest distance in pixels at which a pixel matters."""
        return self.unshuffle * (15 * self.blocks + 4)


@dataclass(frozen=True)
class CompactArchitecture(Shape):
    """The shape of a `CompactNet`.

    Args:
        convs: Number of convolutions between the first and the last.
        channels: Width of the feature maps.
        scale: The factor by which it enlarges each side.
    """

    convs: int = 16
    channels: int = 64
    scale: int = 4

    unshuffle = 1

    @property
    def reach(self):
        """The largest distance in pixels at which a pixel matters."""
        return self.convs + 2


REAL_ESRGAN_X4 = RRDBArchitecture()
REAL_ESRGAN_X2 = RRDBArchitecture(unshuffle=2)
REAL_ESRGAN_X4_ANIME = RRDBArchitecture(blocks=6)
REAL_ESR_GENERAL_X4 = CompactArchitecture(convs=32)
REAL_ESR_ANIME_VIDEO = CompactArchitecture()


def leaky_relu(x):
    return ops.leaky_relu(x, 0.2)


class DenseBlock(keras.layers.Layer):
    """Applies five convolutions, each to its input and the outputs before it, and adds a fifth of the last."""

    def __init__(self, growth, **kwargs):
        super().__init__(**kwargs)
        self.growth = growth

    def build(self, x_shape):
        channels = x_shape[-1]
        widths = [self.growth] * 4 + [channels]
        self.convs = [conv(width, f"conv{i + 1}") for i, width in enumerate(widths)]
        for i, layer in enumerate(self.convs):
            layer.build((*x_shape[:-1], channels + i * self.growth))

    def call(self, x):
        *convs, last = self.convs
        features = x
        for layer in convs:
            features = ops.concatenate([features, leaky_relu(layer(features))], axis=-1)
        return last(features) * 0.2 + x

    def compute_output_shape(self, x_shape):
        return x_shape


class ResidualDenseBlock(keras.layers.Layer):
    """Applies three dense blocks, and adds a fifth of their output (Wang et al. 2018, ESRGAN, section 3.1)."""

    def __init__(self, growth, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [DenseBlock(growth, name=f"rdb{i}") for i in (1, 2, 3)]

    def build(self, x_shape):
        for block in self.blocks:
            block.build(x_shape)

    def call(self, x):
        first, second, third = self.blocks
        return third(second(first(x))) * 0.2 + x

    def compute_output_shape(self, x_shape):
        return x_shape


class PReLU(keras.layers.Layer):
    """Multiplies negative numbers by a factor that is learned for each channel (He et al. 2015)."""

    def build(self, x_shape):
        self.alpha = self.add_weight(shape=x_shape[-1:], initializer="zeros", name="alpha")

    def call(self, x):
        return ops.relu(x) - self.alpha * ops.relu(-x)

    def compute_output_shape(self, x_shape):
        return x_shape


class PixelShuffle(keras.layers.Layer):
    """Turns channels into pixels: (b, h, w, c · k²) → (b, k · h, k · w, c), as torch orders them."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        _, height, width, channels = ops.shape(x)
        k = self.scale
        x = ops.reshape(x, (-1, height, width, channels // k**2, k, k))
        return ops.reshape(ops.transpose(x, (0, 1, 4, 2, 5, 3)), (-1, k * height, k * width, channels // k**2))

    def compute_output_shape(self, x_shape):
        batch, *sides, channels = x_shape
        return (batch, *(side and self.scale * side for side in sides), channels // self.scale**2)


class PixelUnshuffle(keras.layers.Layer):
    """Turns pixels into channels: (b, k · h, k · w, c) → (b, h, w, c · k²), as torch orders them."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        _, height, width, channels = ops.shape(x)
        k = self.scale
        x = ops.reshape(x, (-1, height // k, k, width // k, k, channels))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 5, 2, 4)), (-1, height // k, width // k, channels * k**2))

    def compute_output_shape(self, x_shape):
        batch, *sides, channels = x_shape
        return (batch, *(side and side // self.scale for side in sides), channels * self.scale**2)


@keras.saving.register_keras_serializable("keras_diffusion")
class RRDBNet(Network):
    """Enlarges images as ESRGAN and Real-ESRGAN do (Wang et al. 2018, arXiv:1809.00219; 2021, arXiv:2107.10833).

    Source: basicsr/archs/rrdbnet_arch.py of XPixelGroup/BasicSR.

    Args:
        architecture: The `RRDBArchitecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        images: (b, h, w, 3) in [0, 1]; h and w are multiples of `architecture.unshuffle`.

    Returns:
        Images (b, scale · h, scale · w, 3), nominally in [0, 1].
    """

    architecture_class = RRDBArchitecture

    def __init__(self, architecture=REAL_ESRGAN_X4, initialize=True, dtype=None, name="rrdb_net"):
        shape, relu = architecture, keras.layers.Activation(leaky_relu)
        with construction(dtype, initialize):
            images = keras.Input((None, None, 3), name="images")
            x = PixelUnshuffle(shape.unshuffle)(images) if shape.unshuffle > 1 else images
            first = conv(shape.channels, "conv_first")(x)

            # Trunk
            x = first
            for i in range(shape.blocks):
                x = ResidualDenseBlock(shape.growth, name=f"body_{i}")(x)
            x = keras.layers.Add()([conv(shape.channels, "conv_body")(x), first])

            # Upsampling flow
            for i in range(shape.doublings):
                x = keras.layers.UpSampling2D(2)(x)
                x = relu(conv(shape.channels, f"conv_up{i + 1}")(x))

            # Exit flow
            x = relu(conv(shape.channels, "conv_hr")(x))
            larger = conv(3, "conv_last")(x)
        super().__init__(images, larger, architecture, name)


@keras.saving.register_keras_serializable("keras_diffusion")
class CompactNet(Network):
    """Enlarges images as the small networks of Real-ESRGAN do.

    Layers are named by their places, which count activations too.

    Source: realesrgan/archs/srvgg_arch.py of xinntao/Real-ESRGAN.

    Args:
        architecture: The `CompactArchitecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        images: (b, h, w, 3) in [0, 1].

    Returns:
        Images (b, scale · h, scale · w, 3), nominally in [0, 1].
    """

    architecture_class = CompactArchitecture

    def __init__(self, architecture=REAL_ESR_ANIME_VIDEO, initialize=True, dtype=None, name="compact_net"):
        shape = architecture
        with construction(dtype, initialize):
            images = keras.Input((None, None, 3), name="images")
            x = images
            for i in range(shape.convs + 1):
                x = conv(shape.channels, f"body_{2 * i}")(x)
                x = PReLU(name=f"body_{2 * i + 1}")(x)
            x = conv(3 * shape.scale**2, f"body_{2 * shape.convs + 2}")(x)
            difference = PixelShuffle(shape.scale)(x)
            larger = keras.layers.Add()([difference, keras.layers.UpSampling2D(shape.scale)(images)])
        super().__init__(images, larger, architecture, name)


NETWORKS = {RRDBArchitecture: RRDBNet, CompactArchitecture: CompactNet}
