"""Defines the T2I-adapter, whose feature maps of an image are added to those of a diffusion model."""

from dataclasses import dataclass

import keras
from keras import ops

from keras_diffusion.networks.layers import conv, dense
from keras_diffusion.networks.network import Network, Shape, construction
from keras_diffusion.networks.upscalers import PixelUnshuffle

KINDS = ("full_adapter", "full_adapter_xl", "light_adapter")  # as diffusers calls them
XL_LEVELS = 3  # of SDXL's diffusion model
XL_HALVES = 2  # the only block of the kind for SDXL that halves its feature map


@dataclass(frozen=True)
class T2IAdapterShape(Shape):
    """The shape of a T2I-adapter.

    Args:
        kind: One of `KINDS`.
        channels: Width of each feature map; that of a light adapter lacks the last, which is as the one before it.
        blocks: Residual blocks for each of them.
        factor: Pixels along a side that become channels of one position.
        in_channels: Channels of the image, 3 or 1.
    """

    kind: str = "full_adapter"
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    factor: int = 8
    in_channels: int = 3

    @property
    def outputs(self):
        """The widths of the feature maps that it returns."""
        return self.channels + self.channels[-1:] * (self.kind == "light_adapter")

    def halves(self, i):
        """Tells whether the i-th block halves its feature map first."""
        return i == XL_HALVES if self.kind == "full_adapter_xl" else i > 0


def expected(kind, architecture):
    """The factor and the widths that a kind of adapter for an architecture has; no widths if there is no such kind."""
    widths = tuple(level.channels for level in architecture.diffusion_model.levels)
    factor = architecture.autoencoder.factor
    if kind == "full_adapter_xl":
        return 2 * factor, widths + widths[-1:] if len(widths) == XL_LEVELS else ()
    return factor, widths


class Residual(keras.layers.Layer):
    """Applies a 3×3 convolution, a ReLU and another convolution, and adds the input."""

    def __init__(self, light, **kwargs):
        super().__init__(**kwargs)
        self.light = light

    def build(self, x_shape):
        channels = x_shape[-1]
        self.block1, self.block2 = conv(channels, "block1"), (conv if self.light else dense)(channels, "block2")
        self.block1.build(x_shape)
        self.block2.build(x_shape)

    def call(self, x):
        return self.block2(ops.relu(self.block1(x))) + x

    def compute_output_shape(self, x_shape):
        return x_shape


class AdapterBlock(keras.layers.Layer):
    """Halves a feature map if it is told to, changes its width, and applies residual blocks.

    Those of a light adapter are a quarter as wide as the output.
    """

    def __init__(self, channels, blocks, halves, light, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.halves, self.light = channels, halves, light
        self.resnets = [Residual(light, name=f"resnets_{i}") for i in range(blocks)]
        self.in_conv = self.out_conv = None

    def build(self, x_shape):
        width = self.channels // 4 if self.light else self.channels
        if self.light or x_shape[-1] != width:
            self.in_conv = dense(width, "in_conv")
            self.in_conv.build(x_shape)
        inner = (*x_shape[:-1], width)
        for layer in self.resnets:
            layer.build(inner)
        if self.light:
            self.out_conv = dense(self.channels, "out_conv")
            self.out_conv.build(inner)

    def call(self, x):
        x = _halved(x) if self.halves else x
        x = self.in_conv(x) if self.in_conv else x
        for layer in self.resnets:
            x = layer(x)
        return self.out_conv(x) if self.out_conv else x

    def compute_output_shape(self, x_shape):
        batch, *sides, _ = x_shape
        return (batch, *(side and (-(-side // 2) if self.halves else side) for side in sides), self.channels)


def _halved(x):
    """The means of 2×2 positions of (b, h, w, c); at an odd edge, of those that are there."""
    if x.shape[1] % 2:
        x = ops.concatenate([x, x[:, -1:]], axis=1)
    if x.shape[2] % 2:
        x = ops.concatenate([x, x[:, :, -1:]], axis=2)
    return ops.average_pool(x, 2, 2, data_format="channels_last")


@keras.saving.register_keras_serializable("keras_diffusion")
class T2IAdapter(Network):
    """Computes the feature maps that make a diffusion model follow an image (edges, depth, a sketch, …).

    It reads the image once; nothing in it depends on the timestep or the prompt.

    Source: Mou et al. 2023, arXiv:2302.08453; `Adapter` and `Adapter_light` in TencentARC/T2I-Adapter.

    Args:
        architecture: A `T2IAdapterShape`.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        image: (b, h, w, input channels) in [0, 1]; h and w are multiples of the shape's factor.

    Returns:
        A list of features for `DiffusionModel.steer`.
    """

    architecture_class = T2IAdapterShape

    def __init__(self, architecture, initialize=True, dtype=None, name="t2i_adapter"):
        shape = architecture
        with construction(dtype, initialize):
            image = keras.Input((None, None, shape.in_channels), name="image")
            x, features = PixelUnshuffle(shape.factor, name="unshuffle")(image), []
            light = shape.kind == "light_adapter"
            if not light:
                x = conv(shape.channels[0], "conv_in")(x)
            for i, channels in enumerate(shape.outputs):
                x = AdapterBlock(channels, shape.blocks, shape.halves(i), light, name=f"body_{i}")(x)
                features.append(x)
        super().__init__(image, features, shape, name)
