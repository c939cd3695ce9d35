"""The names of a network's tensors: which tensor of a checkpoint belongs to which variable. Pure data, no Keras.

`rows(architecture)` walks an architecture, and takes the names inside each layer from `layer_tables`.
"""

from functools import partial
from itertools import count
from typing import NamedTuple

from keras_diffusion.checkpoints.mapping.layer_tables import (
    CLIP_LAYER,
    DOWNSAMPLE,
    OPEN_CLIP_LAYER,
    RESIDUAL_BLOCK,
    SHORTCUT,
    TRANSFORMER_BLOCK,
    UPSAMPLE,
    VAE_ATTENTION,
    VAE_RESAMPLE,
    VAE_RESIDUAL_BLOCK,
    VAE_SHORTCUT,
    Inner,
    block,
    layer,
    nested_rows,
)


class Clip(NamedTuple):
    """LDM's names in a text encoder: of all blocks, inside one, and of the other layers with their kinds."""

    blocks: str
    block: tuple
    tokens: tuple
    positions: tuple
    norm: tuple
    projection: tuple


CLIPS = {  # activation → names
    "quick_gelu": Clip(
        blocks="transformer.text_model.encoder.layers",
        block=CLIP_LAYER,
        tokens=("transformer.text_model.embeddings.token_embedding", "embedding"),
        positions=("transformer.text_model.embeddings.position_embedding", "embedding"),
        norm=("transformer.text_model.final_layer_norm", "norm"),
        projection=("transformer.text_projection", "projection"),
    ),
    "gelu": Clip(
        blocks="model.transformer.resblocks",
        block=OPEN_CLIP_LAYER,
        tokens=("model.token_embedding", "embedding"),
        positions=("model.positional_embedding", "embedding", "parameter"),
        norm=("model.ln_final", "norm"),
        projection=("model.text_projection", "projection", "matrix"),
    ),
}


def text_encoder(architecture, name="text_encoder"):
    """Yields the rows of a text encoder, as transformers names them (without the prefix `text_model.`)."""
    shape = getattr(architecture, name)
    ldm = CLIPS[shape.activation]
    yield from layer("embeddings.token_embedding", *ldm.tokens)
    yield from layer("embeddings.position_embedding", *ldm.positions)
    for i in range(shape.layers):
        yield from block(f"encoder.layers.{i}", f"{ldm.blocks}.{i}", ldm.block)
    yield from layer("final_layer_norm", *ldm.norm)
    if shape.projection:
        yield from layer("text_projection", *ldm.projection)


def diffusion_model(architecture):
    """Yields the rows of the UNet. LDM counts blocks, on the way down and on the way up, and layers in them."""
    shape = architecture.diffusion_model
    projection = "dense" if shape.linear_projection else "pointwise"

    def residual(name, ldm, channels, width):
        return block(name, ldm, RESIDUAL_BLOCK + SHORTCUT * (channels != width))

    def transformer(name, ldm, depth):
        ends = [
            Inner(name, name, name, kind)
            for name, kind in (("norm", "norm"), ("proj_in", projection), ("proj_out", projection))
        ]
        inner = [
            row
            for i in range(depth)
            for row in nested_rows(f"transformer_blocks_{i}", *[f"transformer_blocks.{i}"] * 2, TRANSFORMER_BLOCK)
        ]
        return block(name, ldm, (*ends, *inner)) if depth else ()

    yield from layer("conv_in", "input_blocks.0.0", "conv")
    if shape.guidance_width:  # no original file has it; those of diffusers that were converted keep its name
        yield from layer("time_embedding.cond_proj", "time_embedding.cond_proj", "projection")
    yield from layer("time_embedding.linear_1", "time_embed.0", "dense")
    yield from layer("time_embedding.linear_2", "time_embed.2", "dense")
    if shape.added:
        yield from layer("add_embedding.linear_1", "label_emb.0.0", "dense")
        yield from layer("add_embedding.linear_2", "label_emb.0.2", "dense")
    channels = shape.levels[0].channels
    skips = [channels]
    for i, level in enumerate(shape.levels):
        for j, depth in enumerate(level.down(shape.blocks)):
            ldm = f"input_blocks.{len(skips)}"
            yield from residual(f"down_blocks.{i}.resnets.{j}", f"{ldm}.0", channels, level.channels)
            yield from transformer(f"down_blocks.{i}.attentions.{j}", f"{ldm}.1", depth)
            channels = level.channels
            skips.append(channels)
        if i < len(shape.levels) - 1:
            yield from block(f"down_blocks.{i}.downsamplers.0", f"input_blocks.{len(skips)}.0", DOWNSAMPLE)
            skips.append(channels)

    place = count()
    for i, depth in enumerate(shape.middle):
        yield from residual(f"mid_block.resnets.{i}", f"middle_block.{next(place)}", channels, channels)
        if depth:
            yield from transformer(f"mid_block.attentions.{i}", f"middle_block.{next(place)}", depth)

    blocks = len(skips)
    for i, level in enumerate(reversed(shape.levels)):
        for j, depth in enumerate(level.up(shape.blocks + 1)):
            ldm = f"output_blocks.{blocks - len(skips)}"
            yield from residual(f"up_blocks.{i}.resnets.{j}", f"{ldm}.0", channels + skips.pop(), level.channels)
            yield from transformer(f"up_blocks.{i}.attentions.{j}", f"{ldm}.1", depth)
            channels = level.channels
        if skips:
            yield from block(f"up_blocks.{i}.upsamplers.0", f"{ldm}.{2 if depth else 1}", UPSAMPLE)
    yield from layer("conv_norm_out", "out.0", "norm")
    yield from layer("conv_out", "out.2", "conv")


def image_encoder(architecture):
    """Yields the rows of the VAE encoder."""
    widths = architecture.autoencoder.channels
    yield from layer("conv_in", "conv_in", "conv", prefix="encoder.")
    channels = widths[0]
    for i, width in enumerate(widths):
        for j in range(architecture.autoencoder.blocks):
            table = VAE_RESIDUAL_BLOCK + VAE_SHORTCUT * (channels != width)
            yield from block(f"down_blocks.{i}.resnets.{j}", f"down.{i}.block.{j}", table, "encoder.")
            channels = width
        if i < len(widths) - 1:
            yield from block(f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample", VAE_RESAMPLE, "encoder.")
    yield from autoencoder_ends("encoder.")
    yield from layer("quant_conv", "quant_conv", "pointwise")


def decoder(architecture):
    """Yields the rows of the VAE decoder. LDM counts its levels from the exit."""
    widths = architecture.autoencoder.channels[::-1]
    yield from layer("post_quant_conv", "post_quant_conv", "pointwise")
    yield from layer("conv_in", "conv_in", "conv", prefix="decoder.")
    channels = widths[0]
    for i, width in enumerate(widths):
        ldm = f"up.{len(widths) - 1 - i}"
        for j in range(architecture.autoencoder.blocks + 1):
            table = VAE_RESIDUAL_BLOCK + VAE_SHORTCUT * (channels != width)
            yield from block(f"up_blocks.{i}.resnets.{j}", f"{ldm}.block.{j}", table, "decoder.")
            channels = width
        if i < len(widths) - 1:
            yield from block(f"up_blocks.{i}.upsamplers.0", f"{ldm}.upsample", VAE_RESAMPLE, "decoder.")
    yield from autoencoder_ends("decoder.")


def autoencoder_ends(prefix):
    """Yields the rows of the middle and of the exit, which are the same in both halves of the autoencoder."""
    yield from block("mid_block.resnets.0", "mid.block_1", VAE_RESIDUAL_BLOCK, prefix)
    yield from block("mid_block.attentions.0", "mid.attn_1", VAE_ATTENTION, prefix)
    yield from block("mid_block.resnets.1", "mid.block_2", VAE_RESIDUAL_BLOCK, prefix)
    yield from layer("conv_norm_out", "norm_out", "norm", prefix=prefix)
    yield from layer("conv_out", "conv_out", "conv", prefix=prefix)


NETWORKS = {  # network → (folder of a diffusers model, its rows)
    "text_encoder": ("text_encoder", text_encoder),
    "text_encoder_2": ("text_encoder_2", partial(text_encoder, name="text_encoder_2")),
    "diffusion_model": ("unet", diffusion_model),
    "image_encoder": ("vae", image_encoder),
    "decoder": ("vae", decoder),
}
LDM_PREFIXES = {"text_encoder": "cond_stage_model.", "unet": "model.diffusion_model.", "vae": "first_stage_model."}
SGM_ENCODER = "conditioner.embedders.{}."  # the prefix of a text encoder in the files of SDXL


def folders(architecture):
    """The folders of a diffusers model of this architecture that hold weights."""
    return list(dict.fromkeys(NETWORKS[name][0] for name in architecture.networks))


def ldm_prefix(folder, architecture):
    """Returns the prefix of a part's names in a single file."""
    if architecture.text_encoder_2 and folder in architecture.text_encoders:
        return SGM_ENCODER.format(list(architecture.text_encoders).index(folder))
    return LDM_PREFIXES[folder]


def rows(network, architecture):
    """Lists the names of every tensor of a network.

    Args:
        network: A name in `NETWORKS` that the architecture has.
        architecture: An `Architecture`.

    Returns:
        A list of `Row`.
    """
    folder, table = NETWORKS[network]
    prefix = ldm_prefix(folder, architecture)
    return [row._replace(ldm=prefix + row.ldm) for row in table(architecture)]


def controlnet(architecture, conditioning):
    """Lists the names of every tensor of a ControlNet: those of the diffusion model's way down, and its own.

    Args:
        architecture: An `Architecture`.
        conditioning: Widths of the layers that read the image.

    Returns:
        A list of `Row`.
    """
    shape = architecture.diffusion_model
    shared = ("conv_in/", "time_embedding_", "add_embedding_", "down_blocks_", "mid_block_")
    reading = ["conv_in", *(f"blocks.{i}" for i in range(2 * len(conditioning) - 2)), "conv_out"]
    skips = (shape.blocks + 1) * len(shape.levels)
    return [
        *(row for row in diffusion_model(architecture) if row.path.startswith(shared)),
        *(
            row
            for i, name in enumerate(reading)
            for row in layer(f"controlnet_cond_embedding.{name}", f"input_hint_block.{2 * i}", "conv")
        ),
        *(row for i in range(skips) for row in layer(f"controlnet_down_blocks.{i}", f"zero_convs.{i}.0", "pointwise")),
        *layer("controlnet_mid_block", "middle_block_out.0", "pointwise"),
    ]
