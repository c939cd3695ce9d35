"""Gives the text encoders in files of stable-diffusion.cpp the names that they have in original files.

There they are called as by transformers, those of SDXL "cond_stage_model." and "cond_stage_model.1."; OpenCLIP's
queries, keys and values may be one tensor. Source: name_conversion.cpp of leejet/stable-diffusion.cpp.
"""

from dataclasses import replace

from keras_diffusion.architectures import SD21, SDXL
from keras_diffusion.checkpoints.mapping.names import rows

FIRST, SECOND, CLIP = "cond_stage_model.", "cond_stage_model.1.", "transformer.text_model."
SD2 = replace(SD21, text_encoder=replace(SD21.text_encoder, layers=24))  # files hold one more layer than is used
SGM_FIRST, PROJECTION = "conditioner.embedders.0.", "text_projection"
TOKENS = "embeddings.token_embedding.weight"


def original(tensors):
    """Returns the tensors by their names in original files; those of other files keep theirs."""
    tokens = tensors.get(FIRST + CLIP + TOKENS)
    if SECOND + CLIP + TOKENS in tensors:
        known, first = _open_clip(SECOND, "text_encoder_2", SDXL), SGM_FIRST
    elif tokens and tokens.shape[1:] == (SD2.text_encoder.width,):
        known, first = _open_clip(FIRST, "text_encoder", SD2), FIRST
    else:
        return tensors
    return {
        known.get(name) or (first + name.removeprefix(FIRST) if name.startswith(FIRST) else name): tensor
        for name, tensor in tensors.items()
    }


def _open_clip(prefix, network, architecture):
    """Pairs the names of an OpenCLIP text encoder with those in original files."""
    names = {f"{prefix}{CLIP}{row.diffusers}": row.ldm for row in rows(network, architecture)}
    thirds = {name: ldm.removesuffix("[0]") for name, ldm in names.items() if ldm.endswith("[0]")}
    names |= {name.replace("q_proj", "in_proj"): ldm for name, ldm in thirds.items()}
    if (projection := f"{prefix}{CLIP}{PROJECTION}.weight") in names:
        names[projection.removesuffix(".weight")] = names.pop(projection)
    return names
