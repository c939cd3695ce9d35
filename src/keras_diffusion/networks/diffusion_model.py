"""Defines the diffusion model, which predicts the noise in latents from a timestep and a context."""

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

BRANCH = 0  # features below this skip connection are deep; 0 is the first feature map


def embed_time(shape, timestep):
    """Turns the sinusoidal embedding (b, frequencies) into the input (b, time width) of residual blocks."""
    time = dense(shape.time_width, "time_embedding_linear_1")(timestep)
    time = dense(shape.time_width, "time_embedding_linear_2")(layers.Activation("silu")(time))
    return layers.Activation("silu")(time)


def blocks(shape, time, context):
    """Returns the two blocks of every flow, as functions of a feature map, their size and their name."""

    def residual(x, channels, name):
        return ResidualBlock(channels, shape.groups, name=name)(x, time)

    def attend(x, heads, depth, name):
        return SpatialTransformer(heads, depth, shape.groups, name=name)(x, context) if depth else x

    return residual, attend


def descend(shape, x, residual, attend):
    """Builds the encoder: returns the feature maps for the skip connections, and the middle one."""
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
    """Predicts the noise (or velocity) in the latents of an image at one timestep, by a UNet.

    Source: `UNetModel` in ldm/modules/diffusionmodules/openaimodel.py of CompVis/stable-diffusion
    (Rombach et al. 2022).

    Args:
        img_height: Height of the image in pixels, or None to take any multiple of the latent factor.
        img_width: Width of the image in pixels, or None.
        max_text_length: Number of context vectors, or None for any number.
        architecture: The `Architecture` to build.
        initialize: Whether kernels start at random; False leaves them zero, for a loader that fills every one.
        dtype: A Keras dtype policy or its name; None for the global one.
        name: Name of the model.

    Call arguments, as a list or by name:
        latent: (b, h, w, input channels), unit variance.
        timestep_embedding: (b, frequencies), from `timestep_embedding`, or (1, frequencies) for all.
        context: (b, max_text_length, context width), the text encoder's output. With one embedding for all, it may hold
            k · b rows, k for each latent. Layers that do not depend on it are then computed once.

    Returns:
        The prediction (b, h, w, output channels), or (k · b, h, w, output channels).

    Attributes:
        deep: The output of all but the shallowest layers, a symbolic tensor (see `deep_cache`).
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
        """Predicts with tensors of other networks added inside: a second graph of the same layers.

        Call it with `keras.Input`s to join this network and those that steer it, see `controlnet.steered`.

        Args:
            inputs: latent, timestep_embedding and context.
            residuals: Tensors that a ControlNet adds: one for each skip connection, in the order of their computation,
                then one for the middle; or none.
            features: Tensors that a T2I-adapter (Mou et al. 2023, arXiv:2302.08453) adds: one for the last feature map
                of every level of the encoder; or none.
            outputs: Tensors of this graph to return, a list, such as [`deep`]; None returns the prediction.

        Returns:
            The prediction (b, h, w, output channels), or the `outputs`.

        Raises:
            ValueError: If the number of `residuals` or `features` is wrong.
        """
        shape = self.architecture.diffusion_model
        for name, given, places in (("residuals", residuals, len(self._skips) + 1),
                                    ("features", features, len(shape.levels))):
            if len(given) not in (0, places):
                raise ValueError(f"`{name}` must be {places} tensors, or none. Received: {len(given)} tensors")
        # Each part of the graph starts from the tensors whose values are already known.
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
        """Predicts with the deep features of an earlier timestep, by the shallowest layers alone.

        Call it with `keras.Input`s, as `steer`, see `deep_cache.split`.

        Args:
            inputs: latent, timestep_embedding and context.
            features: The value of `deep` at the earlier timestep.
            residuals: The first residuals of `steer`, one for each skip connection that is computed.

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
