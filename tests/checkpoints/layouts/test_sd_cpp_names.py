"""The names of stable-diffusion.cpp, which its `convert` writes into GGUF files."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from keras_diffusion.architectures import SD15, SD21, SDXL
from keras_diffusion.checkpoints.layouts import sd_cpp_names
from keras_diffusion.checkpoints.mapping.names import rows

RENAMED = {  # as its name_conversion.cpp does
    r"conditioner\.embedders\.0\.": "cond_stage_model.",
    r"conditioner\.embedders\.1\.": "cond_stage_model.1.",
    r"model\.ln_final": "transformer.text_model.final_layer_norm",
    r"model\.positional_embedding": "transformer.text_model.embeddings.position_embedding.weight",
    r"model\.token_embedding\.weight": "transformer.text_model.embeddings.token_embedding.weight",
    r"model\.text_projection": "transformer.text_model.text_projection",
    r"model\.transformer\.resblocks": "transformer.text_model.encoder.layers",
    r"attn\.in_proj_": "self_attn.in_proj.",
    r"attn\.out_proj": "self_attn.out_proj",
    r"ln_1": "layer_norm1",
    r"ln_2": "layer_norm2",
    r"mlp\.c_fc": "mlp.fc1",
    r"mlp\.c_proj": "mlp.fc2",
}
SPLIT = {f"[{i}]": f"{part}_proj" for i, part in enumerate("qkv")}


def renamed(name, split):
    """The name of a tensor of an original file, or of a third of it."""
    third = name[-3:] if name.endswith("]") else ""
    for old, new in RENAMED.items():
        name = re.sub(rf"(?<![\w]){old}", new, name)
    return name.replace("in_proj", SPLIT[third]).removesuffix(third) if split and third else name.removesuffix(third)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("architecture", [SD15, SD21, SDXL], ids=lambda x: x.name)
def test_names_become_those_of_original_files(architecture, split):
    if architecture is SD21:  # files hold one more layer than is used
        architecture = replace(SD21, text_encoder=replace(SD21.text_encoder, layers=24))
    table = [row for network in architecture.networks for row in rows(network, architecture)]
    original = {row.ldm if split else re.sub(r"\[\d\]$", "", row.ldm) for row in table}
    width = SimpleNamespace(shape=(49408, architecture.text_encoder.width))
    assert sd_cpp_names.original({renamed(name, split): width for name in original}).keys() == original
