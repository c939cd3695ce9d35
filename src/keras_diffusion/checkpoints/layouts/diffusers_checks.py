"""Finds what the configuration files of a diffusers folder say that no model can be."""

from itertools import islice

import numpy as np

from keras_diffusion.architectures import SIZE_IDS
from keras_diffusion.checkpoints.layouts.files import TOKENIZERS
from keras_diffusion.checkpoints.mapping.names import NETWORKS
from keras_diffusion.system import limits


def remainders(options):
    """Yields a line for all heads or groups that do not divide the channels."""
    unet, vae = options["unet"], options["vae"]
    for option, divisors, channels in (
        *(
            (f"{name}: num_attention_heads", options[name]["num_attention_heads"], [options[name]["hidden_size"]])
            for name in TOKENIZERS.keys() & options.keys()
        ),
        ("unet: attention_head_dim", unet["attention_head_dim"], unet["block_out_channels"]),
        ("unet: norm_num_groups", unet["norm_num_groups"], unet["block_out_channels"]),
        ("vae: norm_num_groups", vae["norm_num_groups"], vae["block_out_channels"]),
    ):
        if np.any(np.mod(channels, divisors)):
            yield f"{option}={divisors!r:.200}, which does not divide {channels!r:.200}"


def too_large(architecture):
    """Yields a line for every network of more tensors than any model has."""
    for name in architecture.networks:
        if any(islice(NETWORKS[name][1](architecture), limits.NETWORK, None)):
            yield f"{name}: more than {limits.NETWORK} tensors"


def disagreements(architecture):
    """Yields a line for every part that does not fit another one."""
    widths = [shape.width for shape in architecture.text_encoders.values()]
    unet = architecture.diffusion_model
    if unet.context != sum(widths):
        yield f"unet: cross_attention_dim={unet.context}, but the text encoders give {' + '.join(map(str, widths))}"
    if len({bool(x) for x in (architecture.text_encoder_2, unet.added, architecture.size_ids)}) > 1:
        yield (
            f"unet: projection_class_embeddings_input_dim={unet.added}, understood is only, for SDXL, projection_dim "
            f"of text_encoder_2 and {' or '.join(map(str, SIZE_IDS))} times addition_time_embed_dim"
        )
    for name, level, blocks in ((i, level, unet.blocks) for i, level in enumerate(unet.levels)):
        if len(level.down(blocks)) != blocks or len(level.up(blocks + 1)) != blocks + 1:
            yield f"unet: level {name} has {blocks} blocks down and {blocks + 1} up, but other numbers of depths"
