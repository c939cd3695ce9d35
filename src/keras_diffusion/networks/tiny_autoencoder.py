"""Defines the tiny autoencoder, which does roughly what decoder and image encoder do, in a small part of the time."""

from dataclasses import dataclass
from itertools import count

import keras
from keras import ops

from keras_diffusion.networks.layers import Rescaling, conv
from keras_diffusion.networks.network import Network, Shape, construction


@dataclass(frozen=True)
class TinyArchitecture(Shape):
    """The shape of one half of a tiny autoencoder.

    Args:
        blocks: Number of residual blocks at each resolution, in the order of computation.
        channels: Width of the feature maps.
        latent_channels: Channels of the latents.
        scaling_factor: What latents are multiplied by after encoding, to have unit variance.
    """

    blocks: tuple[int, ...]
    channels: int = 64
    latent_channels: int = 4
    scaling_factor: float = 1.0

    @property
    def factor(self):
        """Pixels per latent position, along each side."""
        return 2 ** (len(self.blocks) - 1)


TAESD_DECODER = TinyArchitecture(blocks=(3, 3, 3, 1))
TAESD_ENCODER = TinyArchitecture(blocks=(1, 3, 3, 3))


class TinyBlock(keras.layers.Layer):
    """Applies three 3×3 convolutions, and adds their input; a ReLU follows each."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.convs = [conv(channels, f"conv_{i}") for i in (0, 2, 4)]

    def build(self, x_shape):
        for layer in self.convs:
            layer.build(x_shape)

    def call(self, x):
        first, second, third = self.convs
        return ops.relu(third(ops.relu(second(ops.relu(first(x))))) + x)

    def compute_output_shape(self, x_shape):
        return x_shape


class SoftClip(keras.layers.Layer):
    """Brings numbers of any size softly to between -3 and 3."""

    def call(self, x):
        return ops.tanh(x / 3.0) * 3.0

    def compute_output_shape(self, x_shape):
        return x_shape


@keras.saving.register_keras_serializable("keras_diffusion")
class TinyDecoder(Network):
    """Turns latents into images, roughly: TAESD.

    Layers are named by their places in diffusers' `DecoderTiny`, which counts activations too.

    Source: `Decoder` in taesd.py of madebyollin/taesd.

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Width of the image in pixels, or None.
        architecture: The `TinyArchitecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        latents: (b, h, w, latent channels), unit variance.

    Returns:
        Images (b, factor · h, factor · w, 3), nominally in [-1, 1].
    """

    architecture_class = TinyArchitecture

    def __init__(
        self,
        img_height=None,
        img_width=None,
        architecture=TAESD_DECODER,
        initialize=True,
        dtype=None,
        name="tiny_decoder",
    ):
        shape, place = architecture, count(2)
        size = (side and side // shape.factor for side in (img_height, img_width))
        with construction(dtype, initialize):
            latents = keras.Input((*size, shape.latent_channels), name="latents")
            x = Rescaling(1.0 / shape.scaling_factor, name="rescaling")(latents)
            x = keras.layers.Activation("relu")(conv(shape.channels, "layers_0")(SoftClip(name="clip")(x)))

            # Upsampling flow
            for level, blocks in enumerate(shape.blocks):
                if level:
                    x = keras.layers.UpSampling2D(2, name=f"layers_{next(place)}")(x)
                    x = conv(shape.channels, f"layers_{next(place)}", use_bias=False)(x)
                for _ in range(blocks):
                    x = TinyBlock(shape.channels, name=f"layers_{next(place)}")(x)

            # Exit flow
            x = conv(3, f"layers_{next(place)}")(x)
            image = Rescaling(2.0, offset=-1.0, name="to_image")(x)
        super().__init__(latents, image, architecture, name, img_height=img_height, img_width=img_width)


@keras.saving.register_keras_serializable("keras_diffusion")
class TinyImageEncoder(Network):
    """Turns images into latents, roughly: TAESD.

    Source: `Encoder` in taesd.py of madebyollin/taesd.

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Width of the image in pixels, or None.
        architecture: The `TinyArchitecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        images: (b, height, width, 3) in [-1, 1].

    Returns:
        Latents (b, height / factor, width / factor, latent channels), unit variance.
    """

    architecture_class = TinyArchitecture

    def __init__(
        self,
        img_height=None,
        img_width=None,
        architecture=TAESD_ENCODER,
        initialize=True,
        dtype=None,
        name="tiny_image_encoder",
    ):
        shape, place = architecture, count(1)
        with construction(dtype, initialize):
            images = keras.Input((img_height, img_width, 3), name="images")
            x = Rescaling(0.5, offset=0.5, name="from_image")(images)
            x = conv(shape.channels, "layers_0")(x)

            # Downsampling flow
            for level, blocks in enumerate(shape.blocks):
                if level:
                    x = keras.layers.ZeroPadding2D(1)(x)
                    x = conv(shape.channels, f"layers_{next(place)}", strides=2, padding="valid", use_bias=False)(x)
                for _ in range(blocks):
                    x = TinyBlock(shape.channels, name=f"layers_{next(place)}")(x)

            # Exit flow
            x = conv(shape.latent_channels, f"layers_{next(place)}")(x)
            latents = Rescaling(shape.scaling_factor, name="rescaling")(x)
        super().__init__(images, latents, architecture, name, img_height=img_height, img_width=img_width)
