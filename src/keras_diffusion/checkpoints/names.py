"""The table of names: which tensor of a checkpoint belongs to which variable. Pure data, no Keras.

`rows(architecture)` walks an architecture; every layer it meets stands in one of the tables below with its name here,
its name in diffusers and the kind of leaf it is. A kind knows how the stored tensor becomes our variable.
"""

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One tensor: the path of our variable, its name in a diffusers (or transformers) file, and how it is stored."""

    path: str
    diffusers: str
    layout: str


LAYOUTS = {  # stored → ours, ours → stored
    "same": (lambda x: x, lambda x: x),
    "matrix": (np.transpose, np.transpose),  # (out, in) ↔ (in, out)
    "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),  # (out, in, 1, 1) ↔ (in, out)
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),  # (out, in, h, w) ↔ (h, w, in, out)
}
BIAS = ("bias", "bias", "same")
KINDS = {  # kind of leaf → (our variable, stored tensor, layout)
    "conv": (("kernel", "weight", "conv"), BIAS),
    "pointwise": (("kernel", "weight", "pointwise"), BIAS),
    "dense": (("kernel", "weight", "matrix"), BIAS),
    "projection": (("kernel", "weight", "matrix"),),
    "norm": (("gamma", "weight", "same"), ("beta", "bias", "same")),
    "embedding": (("embeddings", "weight", "same"),),
}


def under(name, table):
    """The rows of `table` one level deeper."""
    return tuple((f"{name}/{ours}", f"{name}.{theirs}", kind) for ours, theirs, kind in table)


SELF_ATTENTION = (  # CLIP's
    ("self_attn/to_q", "self_attn.q_proj", "dense"),
    ("self_attn/to_k", "self_attn.k_proj", "dense"),
    ("self_attn/to_v", "self_attn.v_proj", "dense"),
    ("self_attn/to_out", "self_attn.out_proj", "dense"),
)
ENCODER_LAYER = (
    ("layer_norm1", "layer_norm1", "norm"),
    *SELF_ATTENTION,
    ("layer_norm2", "layer_norm2", "norm"),
    ("mlp_fc1", "mlp.fc1", "dense"),
    ("mlp_fc2", "mlp.fc2", "dense"),
)
ATTENTION = (
    ("to_q", "to_q", "projection"),
    ("to_k", "to_k", "projection"),
    ("to_v", "to_v", "projection"),
    ("to_out", "to_out.0", "dense"),
)
TRANSFORMER_BLOCK = (
    ("norm1", "norm1", "norm"),
    *under("attn1", ATTENTION),
    ("norm2", "norm2", "norm"),
    *under("attn2", ATTENTION),
    ("norm3", "norm3", "norm"),
    ("ff/net_0_proj", "ff.net.0.proj", "dense"),
    ("ff/net_2", "ff.net.2", "dense"),
)
SPATIAL_ATTENTION = (
    ("group_norm", "group_norm", "norm"),
    ("attention/to_q", "to_q", "dense"),
    ("attention/to_k", "to_k", "dense"),
    ("attention/to_v", "to_v", "dense"),
    ("attention/to_out", "to_out.0", "dense"),
)
RESIDUAL_BLOCK = (
    ("norm1", "norm1", "norm"),
    ("conv1", "conv1", "conv"),
    ("norm2", "norm2", "norm"),
    ("conv2", "conv2", "conv"),
)
TIME = (("time_emb_proj", "time_emb_proj", "dense"),)
SHORTCUT = (("conv_shortcut", "conv_shortcut", "pointwise"),)
RESAMPLE = (("conv", "conv", "conv"),)


def text_encoder(architecture):
    """Yields the rows of the text encoder, as transformers names them (without the prefix `text_model.`)."""
    yield from layer("embeddings.token_embedding", "embedding")
    yield from layer("embeddings.position_embedding", "embedding")
    for i in range(architecture.text_encoder.layers):
        yield from block(f"encoder.layers.{i}", ENCODER_LAYER)
    yield from layer("final_layer_norm", "norm")


def diffusion_model(architecture):
    """Yields the rows of the UNet."""
    shape = architecture.diffusion_model
    projection = "dense" if shape.linear_projection else "pointwise"

    def residual(name, channels, width):
        return block(name, RESIDUAL_BLOCK + TIME + SHORTCUT * (channels != width))

    def transformer(name, depth):
        ends = (("norm", "norm", "norm"), ("proj_in", "proj_in", projection), ("proj_out", "proj_out", projection))
        inner = [(f"transformer_blocks_{i}/{ours}", f"transformer_blocks.{i}.{theirs}", kind)
                 for i in range(depth) for ours, theirs, kind in TRANSFORMER_BLOCK]
        return block(name, (*ends, *inner)) if depth else ()

    yield from layer("conv_in", "conv")
    yield from layer("time_embedding.linear_1", "dense")
    yield from layer("time_embedding.linear_2", "dense")
    channels = shape.levels[0].channels
    skips = [channels]
    for i, level in enumerate(shape.levels):
        for j in range(shape.blocks):
            yield from residual(f"down_blocks.{i}.resnets.{j}", channels, level.channels)
            yield from transformer(f"down_blocks.{i}.attentions.{j}", level.depth)
            channels = level.channels
            skips.append(channels)
        if i < len(shape.levels) - 1:
            yield from block(f"down_blocks.{i}.downsamplers.0", RESAMPLE)
            skips.append(channels)

    yield from residual("mid_block.resnets.0", channels, channels)
    yield from transformer("mid_block.attentions.0", shape.middle_depth)
    yield from residual("mid_block.resnets.1", channels, channels)

    for i, level in enumerate(reversed(shape.levels)):
        for j in range(shape.blocks + 1):
            yield from residual(f"up_blocks.{i}.resnets.{j}", channels + skips.pop(), level.channels)
            yield from transformer(f"up_blocks.{i}.attentions.{j}", level.depth)
            channels = level.channels
        if skips:
            yield from block(f"up_blocks.{i}.upsamplers.0", RESAMPLE)
    yield from layer("conv_norm_out", "norm")
    yield from layer("conv_out", "conv")


def image_encoder(architecture):
    """Yields the rows of the VAE encoder."""
    widths = architecture.autoencoder.channels
    yield from layer("conv_in", "conv", "encoder.")
    channels = widths[0]
    for i, width in enumerate(widths):
        for j in range(architecture.autoencoder.blocks):
            shortcut = SHORTCUT * (channels != width)
            yield from block(f"down_blocks.{i}.resnets.{j}", RESIDUAL_BLOCK + shortcut, "encoder.")
            channels = width
        if i < len(widths) - 1:
            yield from block(f"down_blocks.{i}.downsamplers.0", RESAMPLE, "encoder.")
    yield from autoencoder_ends("encoder.")
    yield from layer("quant_conv", "pointwise")


def decoder(architecture):
    """Yields the rows of the VAE decoder."""
    widths = architecture.autoencoder.channels[::-1]
    yield from layer("post_quant_conv", "pointwise")
    yield from layer("conv_in", "conv", "decoder.")
    channels = widths[0]
    for i, width in enumerate(widths):
        for j in range(architecture.autoencoder.blocks + 1):
            shortcut = SHORTCUT * (channels != width)
            yield from block(f"up_blocks.{i}.resnets.{j}", RESIDUAL_BLOCK + shortcut, "decoder.")
            channels = width
        if i < len(widths) - 1:
            yield from block(f"up_blocks.{i}.upsamplers.0", RESAMPLE, "decoder.")
    yield from autoencoder_ends("decoder.")


def autoencoder_ends(prefix):
    """The middle and the exit, which the two halves of the autoencoder have alike."""
    yield from block("mid_block.resnets.0", RESIDUAL_BLOCK, prefix)
    yield from block("mid_block.attentions.0", SPATIAL_ATTENTION, prefix)
    yield from block("mid_block.resnets.1", RESIDUAL_BLOCK, prefix)
    yield from layer("conv_norm_out", "norm", prefix)
    yield from layer("conv_out", "conv", prefix)


def layer(name, kind, prefix=""):
    """The rows of one layer at the top of a network."""
    path = name.replace(".", "_")
    for ours, stored, layout in KINDS[kind]:
        yield Row(f"{path}/{ours}", f"{prefix}{name}.{stored}", layout)


def block(name, table, prefix=""):
    """The rows of a layer made of layers."""
    path = name.replace(".", "_")
    for inner, theirs, kind in table:
        for ours, stored, layout in KINDS[kind]:
            yield Row(f"{path}/{inner}/{ours}", f"{prefix}{name}.{theirs}.{stored}", layout)


NETWORKS = {  # network → (folder of a diffusers model, its rows)
    "text_encoder": ("text_encoder", text_encoder),
    "diffusion_model": ("unet", diffusion_model),
    "image_encoder": ("vae", image_encoder),
    "decoder": ("vae", decoder),
}


def rows(network, architecture):
    """Lists the names of every tensor of a network.

    Args:
        network: "text_encoder", "diffusion_model", "image_encoder" or "decoder".
        architecture: An `Architecture`.

    Returns:
        A list of `Row`.
    """
    return list(NETWORKS[network][1](architecture))


def controlnet(architecture, conditioning):
    """Lists the names of every tensor of a ControlNet: those of the diffusion model's way down, and its own.

    Args:
        architecture: An `Architecture`.
        conditioning: Widths of the layers that read the image.

    Returns:
        A list of `Row`.
    """
    shape = architecture.diffusion_model
    shared = ("conv_in/", "time_embedding_", "down_blocks_", "mid_block_")
    reading = ["conv_in", *(f"blocks.{i}" for i in range(2 * len(conditioning) - 2)), "conv_out"]
    skips = (shape.blocks + 1) * len(shape.levels)
    return [
        *(row for row in diffusion_model(architecture) if row.path.startswith(shared)),
        *(row for name in reading for row in layer(f"controlnet_cond_embedding.{name}", "conv")),
        *(row for i in range(skips) for row in layer(f"controlnet_down_blocks.{i}", "pointwise")),
        *layer("controlnet_mid_block", "pointwise"),
    ]
