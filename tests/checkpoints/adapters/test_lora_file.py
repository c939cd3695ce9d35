"""LoRA files: their names, their parts, and what is wrong with them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion.architectures import SD14, SD21
from keras_diffusion.checkpoints.adapters.layer_names import original_spellings, spellings
from keras_diffusion.checkpoints.adapters.lora_file import changes, targets
from keras_diffusion.checkpoints.adapters.peft_config import METADATA
from keras_diffusion.checkpoints.mapping.names import rows
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.text_encoder import TextEncoder

from ...golden import lora

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture(scope="module")
def networks():
    options = {"architecture": lora.ARCHITECTURE, "initialize": False}
    return {"text_encoder": TextEncoder(**options), "diffusion_model": DiffusionModel(**options)}


@pytest.fixture
def write(tmp_path):
    """Writes tensors as a file."""

    def write(tensors, **options):
        save_file(tensors, tmp_path / "some.safetensors", **options)
        return tmp_path / "some.safetensors"

    return write


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        change.factor == theirs[key].factor
        and change.parts.keys() == theirs[key].parts.keys()
        and all(np.array_equal(x, theirs[key].parts[part]) for part, x in change.parts.items())
        for key, change in ours.items()
    )


@pytest.mark.parametrize("architecture", [SD14, SD21, lora.ARCHITECTURE], ids=lambda a: a.name)
def test_no_two_layers_are_spelled_alike(architecture):
    keys = [
        f"{name}/{row.diffusers.removesuffix('.weight')}"
        for name in ("text_encoder", "diffusion_model")
        for row in rows(name, architecture)
    ]
    seen = {}
    for key in keys:
        for spelling in set(spellings(key)):
            assert seen.setdefault(spelling, key) == key
    for name in ("text_encoder", "diffusion_model"):
        for spelling, key in original_spellings(name, architecture).items():
            assert seen.setdefault(spelling, key) == key


SPELLED = {  # writer → what it replaced in a name of today's peft
    "diffusers with transformers 4": ((r"^text_encoder\.", "text_encoder.text_model."),),
    "diffusers 0.17": (
        (r"^(text_encoder.*)\.lora_A", r"\1.lora_linear_layer.down"),
        (r"^(text_encoder.*)\.lora_B", r"\1.lora_linear_layer.up"),
        (r"\.lora_A", ".lora.down"),
        (r"\.lora_B", ".lora.up"),
    ),
    "diffusers 0.16": (
        (r"^text_encoder\.", "text_encoder.text_model."),
        (r"(q|k|v|out)_proj\.lora_", r"to_\1.lora_"),
        (r"(attn\d)\.(to_[qkv]|to_out)(\.0)?\.lora_A", r"\1.processor.\2_lora.down"),
        (r"(attn\d)\.(to_[qkv]|to_out)(\.0)?\.lora_B", r"\1.processor.\2_lora.up"),
        (r"(self_attn\.\w+)\.lora_A", r"\1_lora.down"),
        (r"(self_attn\.\w+)\.lora_B", r"\1_lora.up"),
    ),
    "peft with a name": ((r"(lora_[AB])\.", r"\1.default."),),
    "peft with a numbered name": ((r"(lora_[AB])\.", r"\1.default_0."),),
    "peft's own": ((r"^text_encoder\.", "base_model.model.text_model."), (r"^unet\.", "base_model.model.")),
    "unet.save_attn_procs": ((r"^unet\.", ""),),
}


@pytest.mark.parametrize("writer", SPELLED)
def test_names_of_many_years(networks, write, writer):
    today = load_file(lora.FILES["peft"])
    if "0.16" in writer:
        today = {name: x for name, x in today.items() if "to_out" not in name or "text" not in name}

    def renamed(name):
        for pattern, new in SPELLED[writer]:
            name = re.sub(pattern, new, name)
        return name

    expected = changes(write(today), networks)
    tensors = {renamed(name): tensor for name, tensor in today.items()}
    assert tensors.keys() != today.keys()
    assert len(tensors) == len(today)
    assert equal(changes(write(tensors), networks), expected)


@pytest.mark.parametrize("prefix", ["lora_te1_text_model", "lora_te", "lora_te1"])
def test_other_prefixes_of_the_text_encoder(networks, write, prefix):
    today = load_file(lora.FILES["kohya"])
    expected = changes(write(today), networks)
    renamed = {re.sub("^lora_te_text_model", prefix, name): x for name, x in today.items()}
    assert renamed.keys() != today.keys()
    assert equal(changes(write(renamed), networks), expected)


@pytest.mark.parametrize("form", ["lora_unet_{_}", "diffusion_model.{.}", "model.diffusion_model.{.}", "unet.{.}"])
def test_the_originals_names(networks, write, form):
    """Every layer by its name in the original (LDM) layout, joined or dotted."""
    tensors, expected, known = {}, set(), targets(networks)
    for row in rows("diffusion_model", lora.ARCHITECTURE):
        key = f"diffusion_model/{row.diffusers}"
        if row.ldm.endswith(".weight"):
            bare = row.ldm.removeprefix("model.diffusion_model.").removesuffix(".weight")
            name = form.replace("{_}", bare.replace(".", "_")).replace("{.}", bare)
            tensors[f"{name}.diff"] = zeros(*known[key].shape)
            expected.add(key)
    found = changes(write(tensors), networks)
    assert len(found) > 50
    assert found.keys() == expected


@pytest.mark.parametrize("network", ["text_encoder", "diffusion_model"])
@pytest.mark.parametrize("architecture", [SD14, SD21], ids=lambda a: a.name)
def test_every_layer_has_an_original_name_unless_it_shares_a_tensor(network, architecture):
    named = set(original_spellings(network, architecture).values())
    every = {
        f"{network}/{row.diffusers.removesuffix('.weight')}"
        for row in rows(network, architecture)
        if row.diffusers.endswith(".weight") and "_embedding." not in row.diffusers
    }
    shared = {f"{network}/encoder.layers.{i}.self_attn.{x}_proj" for i in range(23) for x in "qkv"}
    assert every - named == (shared if (network, architecture) == ("text_encoder", SD21) else set())


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"r": 2, "lora_alpha": 4}, 2.0),
        ({"r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"lora_alpha": 4, "alpha_pattern": {r"down_blocks\.0.*attn1\.to_q": 1}}, 0.5),
        ({"lora_alpha": 4, "alpha_pattern": {"up_blocks.*to_q": 1}}, 2.0),
        ({}, 1.0),
    ],
)
def test_alpha_in_pefts_file_beside(networks, tmp_path, options, factor):
    name = LAYER.replace("unet.", "base_model.model.")
    tensors = {f"{name}.lora_A.weight": zeros(2, 16), f"{name}.lora_B.weight": zeros(16, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    [change] = changes(tmp_path / "adapter_model.safetensors", networks).values()
    assert change.factor == factor


PATTERNS = {  # pattern → alpha of a layer of rank 2 with alpha 8 elsewhere
    "down_blocks.*to_q": 3 / 2,
    r"down_blocks\.0.*attn1\.to_q": 3 / 2,
    "to_q": 3 / 2,
    "up_blocks.*to_q": 4.0,
    "o_q": 4.0,
    "attn1": 4.0,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_of_alphas_are_regular_expressions(networks, write, pattern):
    tensors = {f"{LAYER}.lora_A.weight": zeros(2, 16), f"{LAYER}.lora_B.weight": zeros(16, 2)}
    options = {"unet.lora_alpha": 8, "unet.alpha_pattern": {pattern: 3}}
    [change] = changes(write(tensors, metadata={METADATA: json.dumps(options)}), networks).values()
    assert change.factor == PATTERNS[pattern]


def test_halves_of_half_precision_and_of_another_rank_of_axes(networks, write):
    tensors = {
        f"{Q}.lora_down.weight": np.ones((2, 16, 1, 1), "float16"),
        f"{Q}.lora_up.weight": np.ones((16, 2, 1, 1), "float16"),
        f"{Q}.alpha": np.array([4], "int64"),
    }
    [(key, change)] = changes(write(tensors), networks).items()
    assert change.factor == 2.0
    added = change.added(targets(networks)[key], zeros(16, 16))
    assert added.dtype == np.float32
    np.testing.assert_array_equal(added, np.full((16, 16), 4.0))


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 1.0),
        ({"unet.lora_alpha": 8}, 4.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 1, "to_k": 3}}, 0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_in_the_metadata(networks, write, options, factor):
    tensors = {f"{LAYER}.lora_A.weight": zeros(2, 16), f"{LAYER}.lora_B.weight": zeros(16, 2)}
    [change] = changes(write(tensors, metadata={METADATA: json.dumps(options)}), networks).values()
    assert change.factor == factor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"unet.lora_alpha": "8"}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.alpha_pattern": {"a": []}}',
        '{"unet.alpha_pattern": 3}',
        '{"unet.alpha_pattern": {"(a+)+": 1}}',
        '{"unet.alpha_pattern": {"(": 1}}',
        json.dumps({"unet.alpha_pattern": {"(.|.)" * 50: 1}}),  # 2**50 ways not to match
        json.dumps({"unet.alpha_pattern": {f"layer.{i}": 1 for i in range(5000)}}),
        '{"unet.r": Infinity}',
        "[" * 10**5,
        '{"unet.lora_alpha": 1' + "0" * 400 + "}",
    ],
    ids=lambda text: text[:30],
)
def test_damaged_metadata(networks, write, text):
    tensors = load_file(lora.FILES["peft"])
    with pytest.raises(CorruptCheckpointError, match=r"metadata.*Received"):
        changes(write(tensors, metadata={METADATA: text}), networks)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


HALVES = {f"{Q}.lora_down.weight": zeros(2, 16), f"{Q}.lora_up.weight": zeros(16, 2)}
WRONG = {  # what is wrong → (tensors, None to leave one out, words of the message)
    "no tensors": (dict.fromkeys(HALVES), "nothing was changed"),
    "one half": ({f"{Q}.lora_up.weight": None}, "missing: .*attn1.to_q: up"),
    "only alpha": (dict.fromkeys(HALVES) | {f"{Q}.alpha": zeros()}, "attn1.to_q: down"),
    "unknown layer": ({"lora_unet_nothing.lora_down.weight": zeros(1, 2)}, "unexpected: lora_unet_nothing"),
    "unknown part": ({f"{Q}.bias": zeros(1)}, "unexpected: .*bias"),
    "not text": ({"\x1b[2J": zeros(1)}, r"unexpected: '\\x1b\[2J'"),
    "named twice": ({f"{LAYER}.lora_A.weight": zeros(2, 16)}, "unexpected: .*to_q.lora_"),
    "LoRA of a norm": (
        {
            "lora_unet_conv_norm_out.lora_down.weight": zeros(1, 2),
            "lora_unet_conv_norm_out.lora_up.weight": zeros(16, 1),
        },
        r"shape \(1, 2\), not \(1, 1\)",
    ),
    "ranks differ": ({f"{Q}.lora_up.weight": zeros(16, 3)}, r"shape \(16, 3\), not \(16, 2\)"),
    "width": ({f"{Q}.lora_down.weight": zeros(2, 15)}, r"shape \(2, 15\), not \(2, 16\)"),
    "rank 0": ({f"{Q}.lora_down.weight": zeros(0, 16), f"{Q}.lora_up.weight": zeros(16, 0)}, r"not \(1, 16\)"),
    "scalar": ({f"{Q}.lora_down.weight": zeros()}, r"shape \(\)"),
    "kernel of a matrix": ({f"{Q}.lora_mid.weight": zeros(2, 2, 3, 3)}, r"not \(2, 2\)"),
    "dtype": ({f"{Q}.lora_up.weight": zeros(16, 2, dtype="int32")}, "dtype I32, not one of F32"),
    "alphas": ({f"{Q}.alpha": zeros(2)}, r"shape \(2,\), not \(\)"),
    "dtype of alpha": ({f"{Q}.alpha": zeros(dtype="int8")}, "dtype I8"),
    "NaN": ({f"{Q}.lora_up.weight": np.full((16, 2), np.nan, "float32")}, "holds nan"),
    "infinite alpha": ({f"{Q}.alpha": np.array(np.inf)}, "holds inf"),
    "cloneofsimo": (dict.fromkeys(HALVES) | {"unet:0:up": zeros(1, 2)}, "cloneofsimo"),
    "SDXL": ({"lora_te2_text_model_x.lora_down.weight": zeros(1, 2)}, "a LoRA for SDXL"),
    "SDXL by width": (
        {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": zeros(1, 2048)},
        "a LoRA for SDXL",
    ),
    "SD 2": ({f"{Q.replace('attn1_to_q', 'attn2_to_k')}.lora_down.weight": zeros(1, 1024)}, "for Stable Diffusion 2"),
    "SD 1": ({f"{Q.replace('attn1_to_q', 'attn2_to_k')}.lora_down.weight": zeros(1, 768)}, "for Stable Diffusion 1"),
    "Flux": ({"transformer.x.lora_A.weight": zeros(1, 2)}, "Stable Diffusion 3 or Flux"),
    "DoRA of another width": ({f"{Q}.dora_scale": zeros(1, 15)}, r"shape \(1, 15\), not \(16,\)"),
    "two DoRAs": (
        {f"{Q}.dora_scale": zeros(16, 1), f"{Q}.lora_magnitude_vector": zeros(16)},
        "unexpected: .*magnitude_vector",
    ),
    "two kinds": ({f"{Q}.hada_w1_a": zeros(1, 16)}, "unexpected: .*hada_w1_a"),
    "half a LoHa": (dict.fromkeys(HALVES) | {f"{Q}.hada_w1_a": zeros(16, 1)}, "missing: .*to_q: hada_w1_b"),
    "half a LoKr": (dict.fromkeys(HALVES) | {f"{Q}.lokr_w1": zeros(2, 2)}, "missing: .*to_q: lokr_w2"),
    "LoKr of other factors": (
        dict.fromkeys(HALVES) | {f"{Q}.lokr_w1": zeros(3, 4), f"{Q}.lokr_w2": zeros(5, 4)},
        "factors of 16",
    ),
    "difference of another shape": (dict.fromkeys(HALVES) | {f"{Q}.diff": zeros(16, 15)}, r"not \(16, 16\)"),
    "norm of a matrix": (dict.fromkeys(HALVES) | {f"{Q}.w_norm": zeros(16)}, r"not \(16, 16\)"),
    "bias of a layer without": ({f"{Q}.diff_b": zeros(16)}, "unexpected: .*diff_b"),
    "embeddings": ({"lora_te_text_model_embeddings_token_embedding.diff": zeros(49408, 16)}, "unexpected: .*token_emb"),
    "OFT": ({f"{Q}.oft_blocks": zeros(2, 8, 8)}, "an OFT, which is not supported"),
    "OFT of peft": ({f"{LAYER}.oft_R.weight": zeros(2, 8)}, "an OFT, which is not supported"),
    "BOFT": ({f"{Q}.oft_blocks": zeros(2, 2, 8, 8)}, "a BOFT, which is not supported"),
    "BOFT of peft": ({f"{LAYER}.boft_R": zeros(2, 8)}, "a BOFT, which is not supported"),
    "GLoRA": ({f"{Q}.a1.weight": zeros(2, 8)}, "a GLoRA, which is not supported"),
    "(IA)³": ({f"{Q}.on_input": zeros()}, "an \\(IA\\)³, which is not supported"),
    "(IA)³ of peft": ({f"{LAYER}.ia3_l": zeros(16, 1)}, "an \\(IA\\)³, which is not supported"),
    "AdaLoRA": ({f"{LAYER}.lora_E": zeros(2, 1)}, "an AdaLoRA, which is not supported"),
    "a bias that replaces": ({f"{LAYER.replace('to_q', 'to_out.0')}.bias": zeros(16)}, "unexpected: .*bias"),
    "VAE": ({"lora_vae_decoder_conv_in.lora_down.weight": zeros(1, 1)}, "unexpected: lora_vae"),
    "a model": (dict.fromkeys(HALVES) | {"time_embedding.linear_1.weight": zeros(1)}, "looks like a unet"),
    "a word": (dict.fromkeys(HALVES) | {"emb_params": zeros(1, 16)}, "looks like a textual inversion"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(networks, write, case):
    tensors, words = WRONG[case]
    tensors = {name: tensor for name, tensor in {**HALVES, **tensors}.items() if tensor is not None}
    with pytest.raises(CheckpointMismatchError, match=words) as caught:
        changes(write(tensors), networks)
    assert "Received: path=" in str(caught.value)


def test_everything_is_named_at_once(networks, write):
    tensors = load_file(lora.FILES["kohya"])
    names = [name for name in tensors if name.endswith("lora_up.weight")]
    missing, wrong = names[::7], names[3::7]
    for name in missing:
        tensors["x" + name] = tensors.pop(name)
    for name in wrong:
        tensors[name] = zeros(1, 2)
    with pytest.raises(CheckpointMismatchError) as caught:
        changes(write(tensors), networks)
    assert len(caught.value.missing) == len(missing)
    assert sorted(caught.value.unexpected) == sorted("x" + name for name in missing)
    assert len(caught.value.mismatched) == len(wrong)
    assert all(name in str(caught.value) for name in wrong)


def test_what_changes_no_image_is_named_and_ignored(write, caplog):
    """The last layer of OpenCLIP, of which Stable Diffusion 2 takes the one before, and words that no prompt holds."""
    encoder = TextEncoder(architecture=replace(SD21, text_encoder=replace(SD21.text_encoder, width=8, heads=1)))
    last, used = (f"lora_te_text_model_encoder_layers_{i}_mlp_fc1" for i in (23, 22))
    tensors = {f"{last}.diff": zeros(32, 8), f"{used}.diff": zeros(32, 8), "lora_te_text_projection.diff": zeros(8, 8)}
    tensors |= {"bundle_emb.word.string_to_param.*": zeros(1, 8), "lora_unet_nothing.alpha": zeros()}
    found = changes(write(tensors), {"text_encoder": encoder})
    assert found.keys() == {"text_encoder/encoder.layers.22.mlp.fc1.weight"}
    [warning] = caplog.messages
    assert "holds 4 tensors that change no image" in warning
    assert all(name in warning for name in tensors if name != f"{used}.diff")


@pytest.mark.parametrize(
    "option",
    [{"peft_type": "VERA"}, {"init_lora_weights": "pissa"}, {"fan_in_fan_out": True}, {"layer_replication": [[0, 1]]}],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_options_that_change_what_tensors_mean_are_refused_by_name(networks, tmp_path, option, prefix):
    options = {prefix + name: value for name, value in option.items()}
    metadata = {METADATA: json.dumps(options)} if prefix else {}
    save_file(HALVES, tmp_path / "adapter_model.safetensors", metadata)
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointMismatchError, match=f"{next(iter(option))}=.*Received: path="):
        changes(tmp_path / "adapter_model.safetensors", networks)


def test_every_option_that_peft_writes_is_known(networks, tmp_path):
    """By peft 0.21, with its defaults."""
    nothing = (
        "alora_invocation_tokens arrow_config auto_mapping base_model_name_or_path corda_config eva_config revision"
    )
    nothing += " exclude_modules kasa_config layer_replication layers_pattern layers_to_transform lora_ga_config"
    nothing += " megatron_config modules_to_save monteclora_config target_modules target_parameters task_type"
    nothing += " trainable_token_indices use_bdlora velora_config"
    options = dict.fromkeys(nothing.split()) | {
        **{
            "alpha_pattern": {},
            "bias": "none",
            "ensure_weight_tying": False,
            "fan_in_fan_out": False,
            "loftq_config": {},
        },
        **{"inference_mode": True, "init_lora_weights": True, "lora_alpha": 6, "lora_bias": False, "lora_dropout": 0.0},
        **{"megatron_core": "megatron.core", "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16},
        **{"r": 2, "rank_pattern": {}, "use_dora": False, "use_qalora": False, "use_rslora": False},
    }
    save_file(HALVES, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    [change] = changes(tmp_path / "adapter_model.safetensors", networks).values()
    assert change.factor == 3


def test_a_lokr_without_a_rank_takes_that_of_pefts_file(networks, tmp_path):
    save_file(
        {f"{LAYER}.lokr_w1": zeros(4, 2), f"{LAYER}.lokr_w2": zeros(4, 8)}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 2, "alpha": 6}))
    [change] = changes(tmp_path / "adapter_model.safetensors", networks).values()
    assert change.factor == 3
