"""The names of adapters' tensors: which layer each one changes, and which part of the change it is."""

import re
from typing import NamedTuple

from keras_diffusion.checkpoints.mapping.names import NETWORKS, ldm_prefix, rows


class Spelling(NamedTuple):
    """Describes how files spell the names of a network's layers, see `names.rows`."""

    prefixes: tuple[str, ...]  # before the name: diffusers, peft and ComfyUI
    joined: tuple[str, ...]  # before the name with "_" for ".": kohya, LyCORIS, and diffusers' conversion of it
    old: tuple[str, str]  # what in the name was written how until diffusers 0.16
    original: tuple[str, ...]  # before the name in the original (LDM) layout
    original_joined: tuple[str, ...]  # before it with "_" for "."


SPELLINGS = {
    "text_encoder": Spelling(
        prefixes=(
            *("text_encoder.text_model.", "text_encoder.", "text_model.", "clip_l.transformer.text_model."),
            *(f"text_encoders.clip_{size}.transformer.text_model." for size in "lh"),
        ),
        joined=("lora_te_text_model_", "lora_te1_text_model_", "lora_te_", "lora_te1_", "lycoris_text_model_"),
        old=(r"\.(q|k|v|out)_proj$", r".to_\1"),
        original=("cond_stage_model.", "conditioner.embedders.0."),
        original_joined=("lora_te_", "lora_te1_"),
    ),
    "text_encoder_2": Spelling(
        prefixes=(
            *("text_encoder_2.text_model.", "text_encoder_2.", "clip_g.transformer.text_model."),
            "text_encoders.clip_g.transformer.text_model.",
        ),
        joined=("lora_te2_text_model_", "lora_te2_"),
        old=(r"\.(q|k|v|out)_proj$", r".to_\1"),
        original=("conditioner.embedders.1.",),
        original_joined=("lora_te2_",),
    ),
    "diffusion_model": Spelling(
        prefixes=("unet.", "", "diffusion_model."),
        joined=("lora_unet_", "lycoris_"),
        old=(r"(attn\d)\.(to_[a-z]+)(\.0)?$", r"\1.processor.\2"),
        original=("model.diffusion_model.", "diffusion_model.", "unet."),
        original_joined=("lora_unet_",),
    ),
}
ENDINGS = {  # how the name of a tensor ends → what it is to the layer named before
    **dict.fromkeys((".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight"), "down"),
    **dict.fromkeys((".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight"), "up"),
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_B.bias": "lora_bias",
    **dict.fromkeys((".lora_magnitude_vector", ".lora_magnitude_vector.weight"), "magnitude"),
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f".{part}": part for part in ("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm")},
}
ADAPTERS_NAME = re.compile(r"(?<=\.)(lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+)\.default(_\d+)?(?=\.|$)")


def layers(networks):
    """Lists the layers of networks that an adapter can change: all but embeddings.

    Args:
        networks: A dict from names in `SPELLINGS` to networks.

    Returns:
        A list of str, "network/layer", as diffusers names the layer.
    """
    return [
        f"{name}/{row.diffusers.removesuffix('.weight')}"
        for name, network in networks.items()
        for row in rows(name, network.architecture)
        if row.diffusers.endswith(".weight") and not row.path.endswith("/embeddings")
    ]


def spellings(key):
    """Yields the spellings of a layer that `layers` lists; `original_spellings` has those of the original layout."""
    network, _, layer = key.partition("/")
    spelling = SPELLINGS[network]
    for prefix in spelling.joined:
        yield prefix + layer.replace(".", "_")
    for prefix in spelling.prefixes:
        yield prefix + layer
        yield prefix + re.sub(*spelling.old, layer)


def original_spellings(network, architecture):
    """Maps the original (LDM) names of a network's layers, as files spell them, to "network/layer".

    Layers that share a tensor there, as OpenCLIP's attention does, have no such name.
    """
    names, spelling, prefix = {}, SPELLINGS[network], ldm_prefix(NETWORKS[network][0], architecture)
    for row in rows(network, architecture):
        if row.diffusers.endswith(".weight") and row.ldm.endswith(".weight"):
            bare = row.ldm.removesuffix(".weight").removeprefix(prefix)
            spelled = [start + bare for start in spelling.original]
            spelled += [start + bare.replace(".", "_") for start in spelling.original_joined]
            names |= dict.fromkeys(spelled, f"{network}/{row.diffusers.removesuffix('.weight')}")
    return names


def all_spellings(networks):
    """Maps every spelling of the layers of `networks` to "network/layer"."""
    names = {}
    for network, model in networks.items():
        names |= original_spellings(network, model.architecture)
    return names | {spelling: key for key in layers(networks) for spelling in spellings(key)}


def split(name):
    """Splits the name of a tensor, without peft's additions, into its layer's and a part in `ENDINGS`, or None."""
    bare = ADAPTERS_NAME.sub(r"\1", name.replace("base_model.model.", "", 1))
    ending = next((ending for ending in ENDINGS if bare.endswith(ending)), "")
    return bare.removesuffix(ending), ENDINGS.get(ending)
