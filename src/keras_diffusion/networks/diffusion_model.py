"""The diffusion model: latents, timestep and context to a prediction."""

import keras
import numpy as np
from keras import layers

from keras_diffusion.architectures import SD14
from keras_diffusion.networks.layers import (
    Downsample,
    GroupNorm,
    Join,
    ResidualBlock,
    SpatialTransformer,
    Upsample,
    conv,
    dense,
)
from keras_diffusion.networks.network import Network, construction

BRANCH = 0  # the skip connection at which features are deep: 0 is that of the first feature map


def embed_time(shape, timestep):
    """The sinusoidal embedding (b, frequencies) → what residual blocks take, (b, time width)."""
    time = dense(shape.time_width, "time_embedding_linear_1")(timestep)
    time = dense(shape.time_width, "time_embedding_linear_2")(layers.Activation("silu")(time))
    return layers.Activation("silu")(time)


def blocks(shape, time, context):
    """The two blocks of every flow, as functions of a feature map, their size and their name."""

    def residual(x, channels, name):
        return ResidualBlock(channels, shape.groups, name=name)(x, time)

    def attend(x, heads, depth, name):
        return SpatialTransformer(heads, depth, shape.groups, name=name)(x, context) if depth else x

    return residual, attend


def descend(shape, x, residual, attend):
    """The way down and the middle: the first feature map → every feature map for a skip connection, and the middle."""
    # Downsampling flow
    skips = [x]
    for i, (channels, heads, depth) in enumerate(shape.levels):
        for j in range(shape.blocks):
            x = residual(x, channels, f"down_blocks_{i}_resnets_{j}")
            x = attend(x, heads, depth, f"down_blocks_{i}_attentions_{j}")
            skips.append(x)
        if i < len(shape.levels) - 1:
            x = Downsample(channels, padding=(1, 1), name=f"down_blocks_{i}_downsamplers_0")(x)
            skips.append(x)

    # Middle flow
    x = residual(x, channels, "mid_block_resnets_0")
    x = attend(x, heads, shape.middle_depth, "mid_block_attentions_0")
    return skips, residual(x, channels, "mid_block_resnets_1")


@keras.saving.register_keras_serializable("keras_diffusion")
class DiffusionModel(Network):
    """The UNet that predicts, at one timestep, the noise (or velocity) in the latents of an image.

    Source: `UNetModel` in ldm/modules/diffusionmodules/openaimodel.py of CompVis/stable-diffusion
    (Rombach et al. 2022).

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Likewise, its width.
        max_text_length: Number of context vectors, or None for any number.
        architecture: The `Architecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments, as a list or by name:
        latent: (b, h, w, input channels), unit variance.
        timestep_embedding: (b, frequencies), what `timestep_embedding` returns, or (1, frequencies) for all.
        context: (b, max_text_length, context width), the text encoder's output. With one embedding for all it may hold
            k · b, k for each of the latents: what does not depend on it is then computed once.

    Returns:
        The prediction (b, h, w, output channels), or (k · b, h, w, output channels).

    Attributes:
        deep: The feature map, a symbolic tensor, that all but the shallowest layers compute (see `deep_cache`).
    """

    def __init__(
        self,
        img_height=None,
        img_width=None,
        max_text_length=None,
        architecture=SD14,
        initialize=True,
        dtype=None,
        name="diffusion_model",
    ):
        shape = architecture.diffusion_model
        latent_size = architecture.autoencoder.latent_size(img_height, img_width)
        with construction(dtype, initialize):
            latent = keras.Input((*latent_size, shape.in_channels), name="latent")
            timestep = keras.Input((shape.frequencies,), name="timestep_embedding")
            context = keras.Input((max_text_length, shape.context), name="context")

            time = embed_time(shape, timestep)
            residual, attend = blocks(shape, time, context)

            # Downsampling and middle flow
            x = conv(shape.levels[0].channels, "conv_in")(latent)
            skips, middle = descend(shape, x, residual, attend)

            # Upsampling flow
            x, passed, branches = middle, list(skips), []
            for i, (channels, heads, depth) in enumerate(reversed(shape.levels)):
                for j in range(shape.blocks + 1):
                    branches.insert(0, x)
                    x = Join()(x, passed.pop())
                    x = residual(x, channels, f"up_blocks_{i}_resnets_{j}")
                    x = attend(x, heads, depth, f"up_blocks_{i}_attentions_{j}")
                if passed:
                    x = Upsample(channels, name=f"up_blocks_{i}_upsamplers_0")(x, passed[-1])

            # Exit flow
            x = GroupNorm(shape.groups, silu=True, name="conv_norm_out")(x)
            prediction = conv(shape.out_channels, "conv_out")(x)
        sizes = {"img_height": img_height, "img_width": img_width, "max_text_length": max_text_length}
        super().__init__([latent, timestep, context], prediction, architecture, name, **sizes)
        self._time, self._skips, self._middle, self.deep = time, skips, middle, branches[BRANCH]

    def steer(self, inputs, residuals=(), features=(), outputs=None):
        """Predicts with additions from other networks: a second graph of the same layers.

        Meant for `keras.Input`s, to make a network of this one and of those that steer it, see `controlnet.steered`.

        Args:
            inputs: latent, timestep_embedding and context.
            residuals: What a ControlNet adds to the skip connections, in the order in which they arise, and then to
                the middle; as many, or none.
            features: What a T2I-adapter (Mou et al. 2023, arXiv:2302.08453) adds to the last feature map of every
                level of the way down; as many, or none.
            outputs: What to return, a list of tensors of this graph, such as `deep`, or None.

        Returns:
            The prediction (b, h, w, output channels), or the `outputs`.

        Raises:
            ValueError: If there are more or fewer of them than places.
        """
        shape = self.architecture.diffusion_model
        for name, given, places in (("residuals", residuals, len(self._skips) + 1),
                                    ("features", features, len(shape.levels))):
            if len(given) not in (0, places):
                raise ValueError(f"`{name}` must be {places} tensors, or none. Received: {len(given)} tensors")
        # A part of the graph begins where the values of tensors are given anew.
        tensors, values = list(self.inputs), list(inputs)

        def proceed(*wanted):
            values.extend(keras.Model(tensors, wanted)(values))
            tensors.extend(wanted)

        proceed(self._time)
        for level in range(len(shape.levels)):
            proceed(*self._skips[level * (shape.blocks + 1) :][: shape.blocks + 1])
            if features:
                values[-1] = values[-1] + features[level]
        proceed(self._middle)
        for i, residual in enumerate(residuals, len(self.inputs) + 1):
            values[i] = values[i] + residual
        return keras.Model(tensors, outputs or self.outputs[0])(values)

    def reuse(self, inputs, features, residuals):
        """Predicts with the deep features of an earlier timestep: of the layers, only the shallowest are computed.

        Meant for `keras.Input`s like `steer`, see `deep_cache.split`.

        Args:
            inputs: latent, timestep_embedding and context.
            features: What `deep` was.
            residuals: The first of those of `steer`, one for each skip connection that is computed.

        Returns:
            The prediction (b, h, w, output channels).
        """
        computed = [self._time, *self._skips[: BRANCH + 1]]
        time, *skips = keras.Model(self.inputs, computed)(inputs)
        skips = map(sum, zip(skips, residuals, strict=True))
        return keras.Model([*self.inputs, *computed, self.deep], self.outputs[0])([*inputs, time, *skips, features])


def timestep_embedding(timesteps, width):
    """Embeds timesteps as cosines and sines of falling frequency.

    Source: `timestep_embedding` in ldm/modules/diffusionmodules/util.py; maximum period 10000, computed in float32
    as there.

    Args:
        timesteps: (n,) numbers in [0, 999].
        width: Even number of frequencies, cosines first.

    Returns:
        A float32 array (n, width).
    """
    half = width // 2
    frequencies = np.exp(np.float32(-np.log(10000.0)) * np.arange(half, dtype="float32") / np.float32(half))
    angles = np.asarray(timesteps, "float32")[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
