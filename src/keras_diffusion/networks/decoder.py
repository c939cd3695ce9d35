"""Defines the VAE decoder, which turns latents into images."""

import keras

from keras_diffusion.architectures import SD14
from keras_diffusion.networks.layers import GroupNorm, Rescaling, ResidualBlock, SpatialAttention, Upsample, conv, dense
from keras_diffusion.networks.network import Network, construction


@keras.saving.register_keras_serializable("keras_diffusion")
class Decoder(Network):
    """Turns latents into images.

    The first layer undoes the scaling of the latents.

    Source: `Decoder` in ldm/modules/diffusionmodules/model.py of CompVis/stable-diffusion.

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Width of the image in pixels, or None.
        architecture: The `Architecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments:
        latents: (b, h, w, latent channels), unit variance.

    Returns:
        Images (b, factor · h, factor · w, 3), nominally in [-1, 1].
    """

    def __init__(self, img_height=None, img_width=None, architecture=SD14, initialize=True, dtype=None, name="decoder"):
        shape = architecture.autoencoder
        norm = {"groups": shape.groups, "epsilon": 1e-6}
        with construction(dtype, initialize):
            latents = keras.Input((*shape.latent_size(img_height, img_width), shape.latent_channels), name="latents")
            x = Rescaling(1.0 / shape.scaling_factor, name="rescaling")(latents)
            x = dense(shape.latent_channels, "post_quant_conv")(x)
            x = conv(shape.channels[-1], "conv_in")(x)

            # Middle flow
            x = ResidualBlock(shape.channels[-1], **norm, name="mid_block_resnets_0")(x)
            x = SpatialAttention(shape.groups, name="mid_block_attentions_0")(x)
            x = ResidualBlock(shape.channels[-1], **norm, name="mid_block_resnets_1")(x)

            # Upsampling flow
            for i, channels in enumerate(reversed(shape.channels)):
                for j in range(shape.blocks + 1):
                    x = ResidualBlock(channels, **norm, name=f"up_blocks_{i}_resnets_{j}")(x)
                if i < len(shape.channels) - 1:
                    x = Upsample(channels, name=f"up_blocks_{i}_upsamplers_0")(x)

            # Exit flow
            x = GroupNorm(**norm, silu=True, name="conv_norm_out")(x)
            image = conv(3, "conv_out")(x)
        super().__init__(latents, image, architecture, name, img_height=img_height, img_width=img_width)
