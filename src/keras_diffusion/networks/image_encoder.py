"""Defines the VAE encoder, which turns images into latents."""

import keras

from keras_diffusion.architectures import SD14
from keras_diffusion.networks.layers import (
    Downsample,
    GroupNorm,
    Rescaling,
    ResidualBlock,
    SpatialAttention,
    conv,
    dense,
)
from keras_diffusion.networks.network import Network, construction


@keras.saving.register_keras_serializable("keras_diffusion")
class ImageEncoder(Network):
    """Turns images into latents.

    The latents are the mean of the posterior, times the scaling factor.

    Source: `Encoder` in ldm/modules/diffusionmodules/model.py of CompVis/stable-diffusion.

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Width of the image in pixels, or None.
        architecture: The `Architecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        images: (b, height, width, 3) in [-1, 1].

    Returns:
        Latents (b, height / factor, width / factor, latent channels), unit variance.
    """

    def __init__(
        self, img_height=None, img_width=None, architecture=SD14, initialize=True, dtype=None, name="image_encoder"
    ):
        shape = architecture.autoencoder
        norm = {"groups": shape.groups, "epsilon": 1e-6}
        with construction(dtype, initialize):
            images = keras.Input((img_height, img_width, 3), name="images")
            x = conv(shape.channels[0], "conv_in")(images)

            # Downsampling flow
            for i, channels in enumerate(shape.channels):
                for j in range(shape.blocks):
                    x = ResidualBlock(channels, **norm, name=f"down_blocks_{i}_resnets_{j}")(x)
                if i < len(shape.channels) - 1:
                    x = Downsample(channels, padding=(0, 1), name=f"down_blocks_{i}_downsamplers_0")(x)

            # Middle flow
            x = ResidualBlock(shape.channels[-1], **norm, name="mid_block_resnets_0")(x)
            x = SpatialAttention(shape.groups, name="mid_block_attentions_0")(x)
            x = ResidualBlock(shape.channels[-1], **norm, name="mid_block_resnets_1")(x)

            # Exit flow
            x = GroupNorm(**norm, silu=True, name="conv_norm_out")(x)
            x = conv(2 * shape.latent_channels, "conv_out")(x)
            moments = dense(2 * shape.latent_channels, "quant_conv")(x)  # mean and log-variance
            latents = Rescaling(shape.scaling_factor, name="rescaling")(moments[..., : shape.latent_channels])
        super().__init__(images, latents, architecture, name, img_height=img_height, img_width=img_width)
