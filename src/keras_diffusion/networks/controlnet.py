"""Defines the ControlNet: a copy of the diffusion model's encoder that adds to the skip connections."""

from dataclasses import replace
from itertools import pairwise

import keras
from keras import layers, ops

from keras_diffusion.architectures import SD14
from keras_diffusion.arguments import choice
from keras_diffusion.networks.diffusion_model import UNetEncoder
from keras_diffusion.networks.graphs import refuse_own_call
from keras_diffusion.networks.layers import ScaleResidual, Silu, conv, dense
from keras_diffusion.networks.network import Network, construction
from keras_diffusion.networks.t2i_adapter import T2IAdapter

CHANNEL_ORDERS = ("rgb", "bgr")


@keras.saving.register_keras_serializable("keras_diffusion")
class ControlNet(Network):
    """Computes the residuals that make a diffusion model follow an image (edges, depth, a pose, …).

    An untrained network adds nothing: its last layers are zero until they are trained.

    Source: Zhang, Rao and Agrawala 2023, arXiv:2302.05543; `ControlNet` in cldm/cldm.py of lllyasviel/ControlNet.

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Width of the image in pixels, or None.
        max_text_length: Number of context vectors, or None for any number.
        architecture: The `Architecture` whose diffusion model it steers.
        conditioning: Widths of the layers that read the image, each but the last at twice the resolution of the next.
        channel_order: "rgb", or "bgr" if it was trained on images with blue first. Its input is rgb in both cases.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments, as a list or by name:
        latent: (b, h, w, input channels), unit variance.
        timestep_embedding: (b, frequencies), what `timestep_embedding` returns.
        context: (b, max_text_length, context width), the text encoder's output.
        added: See `DiffusionModel`, where the architecture has it.
        image: (b, h · factor, w · factor, 3) in [0, 1].

    Returns:
        A list of residuals for `DiffusionModel.steer`: one for each skip connection and one for the middle.

    Raises:
        ValueError: If `conditioning` has the wrong number of widths, or `channel_order` is unknown.
    """

    def __init__(
        self,
        img_height=None,
        img_width=None,
        max_text_length=None,
        architecture=SD14,
        conditioning=(16, 32, 96, 256),
        channel_order="rgb",
        initialize=True,
        dtype=None,
        name="controlnet",
    ):
        shape = replace(architecture.diffusion_model, guidance_width=0)  # which it has no part in
        architecture, factor = replace(architecture, diffusion_model=shape), architecture.autoencoder.factor
        latent_size = architecture.autoencoder.latent_size(img_height, img_width)
        choice("channel_order", channel_order, CHANNEL_ORDERS)
        if 2 ** (len(conditioning) - 1) != factor:
            raise ValueError(
                f"`conditioning` must hold {factor.bit_length()} widths, to halve an image down to its latents. "
                f"Received: conditioning={conditioning!r:.200}"
            )
        with construction(dtype, initialize):
            latent = keras.Input((*latent_size, shape.in_channels), name="latent")
            timestep = keras.Input((shape.frequencies,), name="timestep_embedding")
            context = keras.Input((max_text_length, shape.context), name="context")
            added = [keras.Input((shape.added,), name="added")] if shape.added else []
            image = keras.Input((img_height, img_width, 3), name="image")

            encoder = UNetEncoder(shape)

            # Conditioning flow
            silu = Silu()
            hint = image if channel_order == "rgb" else ops.flip(image, axis=-1)
            hint = silu(conv(conditioning[0], "controlnet_cond_embedding_conv_in")(hint))
            for i, (width, next_width) in enumerate(pairwise(conditioning)):
                hint = silu(conv(width, f"controlnet_cond_embedding_blocks_{2 * i}")(hint))
                hint = layers.ZeroPadding2D(1)(hint)
                hint = silu(conv(next_width, f"controlnet_cond_embedding_blocks_{2 * i + 1}", 2, "valid")(hint))

            # Downsampling and middle flow
            x = encoder.conv_in(latent)
            with construction(dtype, initialize=False):
                x = x + conv(shape.levels[0].channels, "controlnet_cond_embedding_conv_out")(hint)
            skips, middle = encoder(x, encoder.embed_time(timestep, *added), context)

            # Exit flow
            with construction(dtype, initialize=False):
                residuals = [dense(skip.shape[-1], f"controlnet_down_blocks_{i}")(skip) for i, skip in enumerate(skips)]
                residuals.append(dense(middle.shape[-1], "controlnet_mid_block")(middle))
        super().__init__(
            [latent, timestep, context, *added, image],
            residuals,
            architecture,
            name,
            img_height=img_height,
            img_width=img_width,
            max_text_length=max_text_length,
            conditioning=tuple(conditioning),
            channel_order=channel_order,
        )


def with_controlnets(diffusion_model, controlnets):
    """Joins a diffusion model and what steers it into one network that shares their layers.

    Args:
        diffusion_model: A `DiffusionModel`.
        controlnets: A tuple of `ControlNet` and `T2IAdapter`. A ControlNet that takes fewer channels of latents than
            the diffusion model, as beside a model for inpainting, gets the first ones.

    Returns:
        A model that takes a list: the inputs of the diffusion model, then scales, then what each follows: for a
        ControlNet the image (b, height, width, 3) in [0, 1], for a T2I-adapter its features. It returns the prediction.
        Scales are (1, number of networks, number of residuals), or (k · b, …) for a context of k · b rows; the last one
        is that of features.

    Raises:
        TypeError: If the diffusion model has a `call` of its own.
    """
    refuse_own_call(diffusion_model)
    inputs, *added = additions(diffusion_model, controlnets)
    prediction, _ = diffusion_model.steer(inputs[: len(diffusion_model.inputs)], *added)
    return Network(inputs, prediction, diffusion_model.architecture, "steered_diffusion_model")


def additions(diffusion_model, controlnets):
    """Returns the inputs of the network of `with_controlnets`, and the `residuals` and `features` to steer it with."""
    latent, *conditions = (keras.Input(x.shape[1:]) for x in diffusion_model.inputs)
    scales = keras.Input((len(controlnets), diffusion_model.architecture.diffusion_model.residuals))
    followed, residuals, features = [], [], []
    for i, network in enumerate(controlnets):
        if isinstance(network, T2IAdapter):
            given = [keras.Input(x.shape[1:]) for x in network.outputs]
            features.append([ScaleResidual()(x, scales[:, i, -1]) for x in given])
        else:
            given = [keras.Input(network.inputs[-1].shape[1:])]
            channels = network.architecture.diffusion_model.in_channels
            again = keras.Model(network.inputs, network.outputs, name=f"controlnet_{i}")  # under a name of its own
            own = conditions[: len(network.inputs) - 2]  # all but the guidance
            said = again([latent[..., :channels], *own, *given])
            residuals.append([ScaleResidual()(x, scales[:, i, j]) for j, x in enumerate(said)])
        followed += given
    residuals, features = ([sum(x) for x in zip(*lists, strict=True)] for lists in (residuals, features))
    return [latent, *conditions, scales, *followed], residuals, features
