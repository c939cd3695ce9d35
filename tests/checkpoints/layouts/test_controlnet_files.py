"""A ControlNet's folder or file: what is read, and what is refused."""

import json

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

from keras_diffusion.checkpoints.layouts.controlnet_files import ControlNetFiles
from keras_diffusion.checkpoints.mapping import names
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.checkpoints.mapping.loading import targets
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError, UnsafeCheckpointError
from keras_diffusion.networks.controlnet import ControlNet

from ...golden import controlnets

CASE = controlnets.case("inpainting", (3, 5, 4), "bgr")
MODEL = CASE.unet.architecture  # of nine channels; its ControlNet takes four
WEIGHTS = "diffusion_pytorch_model.safetensors"
TENSORS = controlnets.tensors(CASE, "first")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, controlnets.config(CASE), TENSORS)
    return tmp_path


def write(path, config, tensors):
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / WEIGHTS)


def change(path, **options):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **options}))


def build(source):
    return ControlNet(**source.options, initialize=False)


def loaded(path):
    source = ControlNetFiles(path, MODEL)
    network = build(source)
    source.load(network)
    return network


def assert_holds(network, tensors=TENSORS):
    wanted = targets(network, names.controlnet(network.architecture, CASE.conditioning))
    assert len(wanted) == len(network.variables) == len(tensors)
    for target in wanted:
        expected = LAYOUTS[target.layout][0](tensors[target.name])
        np.testing.assert_array_equal(ops.convert_to_numpy(target.variable), expected)


@pytest.mark.backend
def test_reads_what_diffusers_writes(folder):
    assert_holds(loaded(folder))


def test_says_how_to_build_the_network(folder):
    assert ControlNetFiles(str(folder), MODEL).options == {
        "architecture": CASE.architecture,
        "conditioning": (3, 5, 4),
        "channel_order": "bgr",
    }


def test_reads_half_precision(folder):
    (folder / WEIGHTS).unlink()
    halves = {name: array.astype("float16") for name, array in TENSORS.items()}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in halves.items()},
        folder / "diffusion_pytorch_model.fp16.safetensors",
    )
    assert_holds(loaded(folder), halves)


def original():
    """The tensors by LDM's names, without a prefix."""
    rows = names.controlnet(CASE.architecture, CASE.conditioning)
    ours = {row.path: LAYOUTS[row.layout][0](TENSORS[row.diffusers]) for row in rows}
    return {row.ldm: np.ascontiguousarray(LAYOUTS[row.ldm_layout][1](ours[row.path])) for row in rows}


REST = {"model.diffusion_model.out.0.bias": np.zeros(3, "float32"), "betas": np.zeros(2, "float32")}
FILES = {  # a file → its tensors
    "of diffusers": lambda: TENSORS,
    "of LDM": original,
    "of LDM, with a prefix": lambda: {f"control_model.{name}": x for name, x in original().items()},
    "of LDM, in a model": lambda: {f"control_model.{name}": x for name, x in original().items()} | REST,
}


@pytest.mark.parametrize("file", FILES)
def test_reads_a_file_alone(tmp_path, caplog, file):
    tensors = {name: np.ascontiguousarray(x) for name, x in FILES[file]().items()}
    save_file(tensors, tmp_path / "some.safetensors")
    network = loaded(tmp_path / "some.safetensors")
    assert_holds(network)
    assert network.get_config()["channel_order"] == "rgb"
    assert [all(name in message for name in REST) for message in caplog.messages] == [True] * ("model" in file)


@pytest.mark.parametrize("path", ["folder", "folder without config.json", "file"])
def test_reads_pickles(folder, path):
    torch = pytest.importorskip("torch")
    (folder / WEIGHTS).unlink()
    file = folder / "diffusion_pytorch_model.bin"
    torch.save({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in TENSORS.items()}, file)
    if path != "folder":
        (folder / "config.json").unlink()
    assert_holds(loaded(file if path == "file" else folder))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lllite_unet_x.down.0.weight": (1,)}, "ControlNet-LLLite, which is not supported"),
        ({"adapter.body.0.resnets.0.block1.weight": (1,)}, "T2I-adapter, which is for load_t2i_adapter"),
        ({"lora_controlnet": (), "input_blocks.0.0.up": (1,)}, "Control-LoRA, which is not supported"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (1,)}, "a single file in the original"),
        ({"x": (1,)}, "nothing known"),
        ({}, "nothing known"),
        ({"difference": ()}, "unexpected: ControlNet/difference"),
        ({"task_embedding": (6, 8)}, "unexpected: ControlNet/task_embedding"),
        ({"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, 5)}, "cross_attention_dim=5, only"),
        (
            {"controlnet_cond_embedding.conv_in.weight": (4, 3, 3, 3)},
            r"ControlNet/.*blocks.0.weight: shape \(3, 3, 3, 3\)",
        ),
    ],
)
def test_says_what_another_file_is(tmp_path, tensors, message):
    base = TENSORS if "ControlNet/" in message or "only" in message else {}
    changed = {name: np.zeros(shape, "float32") for name, shape in tensors.items()}
    save_file({name: np.ascontiguousarray(x) for name, x in (base | changed).items()}, tmp_path / "some.safetensors")
    with pytest.raises(CheckpointMismatchError, match=message) as caught:
        loaded(tmp_path / "some.safetensors")
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_head_dim": 2, "transformer_layers_per_block": 1},  # one value for every level
        {"act_fn": "swish"},
        {
            "num_attention_heads": None,
            "class_embed_type": None,
            "only_cross_attention": False,
            "upcast_attention": True,
        },
        {"_diffusers_version": "0.16.0.dev0", "_name_or_path": "/home/someone"},
    ],
)
def test_takes_other_spellings(folder, options):
    change(folder, **options)
    assert ControlNetFiles(folder, MODEL).options["architecture"] == CASE.architecture


def test_defaults_are_those_of_diffusers(folder):
    config = controlnets.config(CASE)
    for option in ("controlnet_conditioning_channel_order", "in_channels", "norm_eps", "conditioning_channels"):
        config.pop(option, None)
    (folder / "config.json").write_text(json.dumps(config))
    options = ControlNetFiles(folder, MODEL).options
    assert options["channel_order"] == "rgb"
    assert options["architecture"].diffusion_model.in_channels == 4


@pytest.mark.parametrize(
    "options",
    [
        {"cross_attention_dim": 768},
        {"block_out_channels": [32, 96]},
        {"block_out_channels": [32, 64, 64]},
        {"attention_head_dim": [2, 4]},
        {"layers_per_block": 2},
        {"norm_num_groups": 16},
        {"down_block_types": ["DownBlock2D", "DownBlock2D"]},
        {"transformer_layers_per_block": [1, 2]},
        {"cross_attention_dim": None},  # 1280
        {"conditioning_channels": 4},
        {"conditioning_embedding_out_channels": [16, 32, 96, 256]},
        {"conditioning_embedding_out_channels": None},
        {"conditioning_embedding_out_channels": [16, "32", 96]},
        {"conditioning_embedding_out_channels": []},
        {"conditioning_embedding_out_channels": 3},
        {"controlnet_conditioning_channel_order": "gbr"},
        {"global_pool_conditions": True},
        {"use_linear_projection": "yes"},
        {"in_channels": 0},
        {"addition_embed_type": "text_time"},
        {"class_embed_type": "projection"},
        {"num_attention_heads": 4},
        {"flip_sin_to_cos": False},
        {"resnet_time_scale_shift": "scale_shift"},
        {"mid_block_type": "UNetMidBlock2D"},
        {"something": {"new": 1}},
    ],
)
def test_refuses_other_networks(folder, options):
    change(folder, **options)
    with pytest.raises(CheckpointMismatchError, match="Received: path=") as caught:
        ControlNetFiles(folder, MODEL)
    assert any(line.startswith(name) for line in caught.value.mismatched for name in options)


@pytest.mark.parametrize(("path", "error"), [(7, TypeError), (None, TypeError), ("no/such", CorruptCheckpointError)])
def test_refuses_what_is_no_folder(path, error):
    with pytest.raises(error, match="Received: path="):
        ControlNetFiles(path, MODEL)


def test_refuses_a_damaged_configuration(folder):
    (folder / "config.json").write_text("<html>")
    with pytest.raises(CorruptCheckpointError):
        ControlNetFiles(folder, MODEL)


def refused(folder, error=CheckpointMismatchError):
    """The error, after a check that nothing was loaded."""
    source = ControlNetFiles(folder, MODEL)
    network = build(source)
    before = [ops.convert_to_numpy(variable).copy() for variable in network.variables]
    with pytest.raises(error) as caught:
        source.load(network)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "conv_in.weight",
        "controlnet_mid_block.bias",
        "controlnet_down_blocks.3.weight",
        "controlnet_cond_embedding.blocks.3.weight",
        "mid_block.resnets.1.conv2.bias",
    ],
)
def test_every_tensor_must_be_there(folder, name):
    write(folder, controlnets.config(CASE), {other: array for other, array in TENSORS.items() if other != name})
    assert refused(folder).missing == [f"ControlNet/{name}"]


def test_no_other_tensor_may_be_there(folder):
    write(folder, controlnets.config(CASE), {**TENSORS, "up_blocks.0.resnets.0.conv1.bias": np.zeros(3, "float32")})
    assert refused(folder).unexpected == ["ControlNet/up_blocks.0.resnets.0.conv1.bias"]


def test_shapes_and_values_must_fit(folder):
    name = "controlnet_down_blocks.0.weight"
    write(folder, controlnets.config(CASE), {**TENSORS, name: TENSORS[name][:, 1:]})
    assert [line.partition(":")[0] for line in refused(folder).mismatched] == [f"ControlNet/{name}"]
    write(folder, controlnets.config(CASE), {**TENSORS, name: TENSORS[name] * np.nan})
    assert refused(folder).mismatched == [f"ControlNet/{name}: holds nan"]


def test_says_that_it_is_a_diffusion_model(folder):
    tensors = {name: array for name, array in TENSORS.items() if not name.startswith("controlnet_")}
    write(folder, controlnets.config(CASE), tensors)
    assert "ControlNet looks like a unet." in str(refused(folder))


def test_the_weights_must_be_there_and_sound(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).write_bytes(b"0" * 100)
    refused(folder, CorruptCheckpointError)
    (folder / WEIGHTS).unlink()
    refused(folder, CorruptCheckpointError)
    save_file(tensors, folder / "a.safetensors")
    save_file({"conv_in.bias": tensors["conv_in.bias"]}, folder / "b.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"1": "a.safetensors", "2": "b.safetensors"}}))
    refused(folder, CorruptCheckpointError)
    index.write_text(json.dumps({"weight_map": {"1": "../a.safetensors"}}))
    refused(folder, UnsafeCheckpointError)
