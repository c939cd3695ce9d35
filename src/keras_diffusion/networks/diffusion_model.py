"""Defines the diffusion model, which predicts the noise in latents from a timestep and a context."""

from typing import NamedTuple

import keras
from keras import layers

from keras_diffusion.architectures import SD14
from keras_diffusion.networks.layers import (
    AddFeatures,
    AddResidual,
    ConcatenateSkip,
    Downsample,
    GroupNorm,
    ResidualBlock,
    Silu,
    SpatialTransformer,
    Upsample,
    conv,
    dense,
)
from keras_diffusion.networks.network import Network, construction


class Block(NamedTuple):
    """A residual block, and the transformer after it or None."""

    residual: ResidualBlock
    attend: SpatialTransformer | None

    @classmethod
    def of(cls, shape, channels, heads, depth, name, i):
        """Makes the i-th block of a flow, whose name is the beginning of the names in a checkpoint."""
        attend = SpatialTransformer(heads, depth, shape.groups, name=f"{name}_attentions_{i}") if depth else None
        return cls(ResidualBlock(channels, shape.groups, name=f"{name}_resnets_{i}"), attend)

    def __call__(self, x, time, context):
        x = self.residual(x, time)
        return self.attend(x, context) if self.attend else x


class UNetEncoder:
    """Holds the layers that a ControlNet copies: the timestep's embedding, the downsampling and the middle flow."""

    def __init__(self, shape):
        names = ("time_embedding", "add_embedding") if shape.added else ("time_embedding",)
        self.guidance = None
        if shape.guidance_width:
            self.guidance = dense(shape.frequencies, "time_embedding_cond_proj", use_bias=False)
        self.embeddings = [[dense(shape.time_width, f"{name}_linear_{i}") for i in (1, 2)] for name in names]
        self.silu, self.add = Silu(), layers.Add()
        self.conv_in = conv(shape.levels[0].channels, "conv_in")
        self.levels = [  # of each: its blocks, and the layer that halves their feature map or None
            (
                [
                    Block.of(shape, level.channels, level.heads, depth, f"down_blocks_{i}", j)
                    for j, depth in enumerate(level.down(shape.blocks))
                ],
                Downsample(level.channels, padding=(1, 1), name=f"down_blocks_{i}_downsamplers_0")
                if i < len(shape.levels) - 1
                else None,
            )
            for i, level in enumerate(shape.levels)
        ]
        channels, heads, *_ = shape.levels[-1]
        self.middle = [Block.of(shape, channels, heads, depth, "mid_block", i) for i, depth in enumerate(shape.middle)]

    def embed_time(self, timestep, *others):
        """Embeds the sinusoids (b, frequencies) of the timestep, and the other vectors that there are: (b, width)."""
        if self.guidance:
            *others, guidance = others
            timestep = self.add([timestep, self.guidance(guidance)])
        vectors = [timestep, *others]
        time, *others = (
            second(self.silu(first(x))) for x, (first, second) in zip(vectors, self.embeddings, strict=True)
        )
        return self.silu(self.add([time, *others]) if others else time)

    def __call__(self, x, time, context, features=()):
        """Returns the feature maps of the skip connections, of which x is the first, and that of the middle."""
        # Downsampling flow
        skips = [x]
        for i, (blocks, downsample) in enumerate(self.levels):
            for block in blocks:
                x = block(x, time, context)
                skips.append(x)
            late = bool(downsample) and not blocks[-1].attend
            if features and not late:
                skips[-1] = x = AddFeatures()(x, features[i])
            if downsample:
                x = downsample(x)
                skips.append(x)
            if features and late:
                skips[-1] = x = AddFeatures()(x, features[i])

        # Middle flow
        for block in self.middle:
            x = block(x, time, context)
        if len(features) > len(self.levels):
            x = AddFeatures()(x, features[-1])
        return skips, x


class UNetDecoder:
    """Holds the layers of the upsampling and the exit flow."""

    def __init__(self, shape):
        self.steps = []  # of each: the skip connection's layer, a block, and the layer that doubles its output or None
        for i, level in enumerate(reversed(shape.levels)):
            for j, depth in enumerate(level.up(shape.blocks + 1)):
                doubles = j == shape.blocks and i < len(shape.levels) - 1
                upsample = Upsample(level.channels, name=f"up_blocks_{i}_upsamplers_0") if doubles else None
                block = Block.of(shape, level.channels, level.heads, depth, f"up_blocks_{i}", j)
                self.steps.append((ConcatenateSkip(), block, upsample))
        self.norm = GroupNorm(shape.groups, silu=True, name="conv_norm_out")
        self.conv_out = conv(shape.out_channels, "conv_out")

    def __call__(self, x, skips, time, context):
        """Returns the prediction, and the feature map before the last skip connection.

        Args:
            x: The feature map to start from.
            skips: Those of the last so many skip connections, the first of the encoder first.
        """
        # Upsampling flow
        skips = list(skips)
        for join, block, upsample in self.steps[-len(skips) :]:
            deep = x
            x = block(join(x, skips.pop()), time, context)
            if upsample:
                x = upsample(x, skips[-1])

        # Exit flow
        return self.conv_out(self.norm(x)), deep


class UNet(NamedTuple):
    """Holds the layers of a diffusion model and wires them."""

    encoder: UNetEncoder
    decoder: UNetDecoder

    def __call__(self, inputs, residuals=(), features=()):
        """Returns the prediction and the deep features, see `DiffusionModel.steer`."""
        latent, timestep, context, *others = inputs
        time = self.encoder.embed_time(timestep, *others)
        skips, x = self.encoder(self.encoder.conv_in(latent), time, context, features)
        if residuals:
            *skips, x = (AddResidual()(x, residual) for x, residual in zip([*skips, x], residuals, strict=True))
        return self.decoder(x, skips, time, context)


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
        added: (b, added width) or (k · b, added width), the pooled vector of the prompt and the embedded size ids; only
            where the architecture has one, as SDXL.
        guidance_embedding: (b, guidance width), of sines and cosines; only where the architecture has it, as LCM.

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
            widths = {"added": shape.added, "guidance_embedding": shape.guidance_width}
            others = [keras.Input((width,), name=name) for name, width in widths.items() if width]
            inputs = [latent, timestep, context, *others]

            unet = UNet(UNetEncoder(shape), UNetDecoder(shape))
            prediction, deep = unet(inputs)
        sizes = {"img_height": img_height, "img_width": img_width, "max_text_length": max_text_length}
        super().__init__(inputs, prediction, architecture, name, **sizes)
        self.unet, self.deep = unet, deep
        for i, crossing in enumerate(shape.crossings):
            self.get_layer(crossing.transformer).blocks[crossing.block].attn2.place = i

    def steer(self, inputs, residuals=(), features=()):
        """Predicts with tensors of other networks added inside: a second graph of the same layers.

        Call it with `keras.Input`s to join this network and those that steer it, see `controlnet.with_controlnets`.

        Args:
            inputs: latent, timestep_embedding, context, and the others that the network takes.
            residuals: Tensors that a ControlNet adds: one for each skip connection, in the order of their computation,
                then one for the middle; or none.
            features: Tensors that a T2I-adapter (Mou et al. 2023, arXiv:2302.08453) adds: one for every level of the
                encoder, and for SDXL one for the middle; or none. They are added to the last feature map of a level, or
                to what is left of it after it is halved, where the level has no transformers. Of latents of b images,
                they may be those of b, if the context holds k · b rows.

        Returns:
            The prediction (b, h, w, output channels), and the deep features of these inputs, see `deep`.

        Raises:
            ValueError: If the number of `residuals` or `features` is wrong.
        """
        levels = self.unet.encoder.levels
        skips = sum(len(blocks) + 1 for blocks, _ in levels)
        if len(residuals) not in (0, skips + 1):
            raise ValueError(f"`residuals` must be {skips + 1} tensors, or none. Received: {len(residuals)} tensors")
        if len(features) not in (0, len(levels), len(levels) + 1):
            count = f"{len(levels)} tensors, or one more for the middle"
            raise ValueError(f"`features` must be {count}, or none. Received: {len(features)} tensors")
        return self.unet(inputs, residuals, features)

    def reuse(self, inputs, features, residuals):
        """Predicts with the deep features of an earlier timestep, by the shallowest layers alone.

        Call it with `keras.Input`s, as `steer`, see `deep_cache.deep_and_shallow`.

        Args:
            inputs: latent, timestep_embedding, context, and the others that the network takes.
            features: The value of `deep` at the earlier timestep.
            residuals: The first of those of `steer`, for the one skip connection that is computed.

        Returns:
            The prediction (b, h, w, output channels).
        """
        latent, timestep, context, *others = inputs
        encoder, decoder = self.unet
        skip = encoder.conv_in(latent)
        for residual in residuals:
            skip = AddResidual()(skip, residual)
        return decoder(features, [skip], encoder.embed_time(timestep, *others), context)[0]
