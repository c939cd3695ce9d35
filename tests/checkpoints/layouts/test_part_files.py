"""A VAE, a text encoder and a scheduler given on their own."""

import json
import re
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import Level, TextEncoderShape
from keras_diffusion.checkpoints.layouts import diffusers_folder, single_file
from keras_diffusion.checkpoints.mapping.loading import find_targets, stored
from keras_diffusion.errors import CheckpointError, CheckpointMismatchError, CorruptCheckpointError

from ...small import SMALL

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(build, tmp_path_factory):
    """A folder and a file of the same random model."""
    networks, random = build(SMALL), np.random.default_rng(0)
    for network in networks.values():
        network.set_weights([random.normal(size=x.shape).astype("float32") for x in network.get_weights()])
    path = tmp_path_factory.mktemp("parts")
    diffusers_folder.save(path / "model", SMALL, **networks)
    single_file.save(path / "model.safetensors", SMALL, **networks)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory, build):
    """A folder of zeros of the same architecture."""
    path = tmp_path_factory.mktemp("zeros") / "model"
    diffusers_folder.save(path, SMALL, **build(SMALL))
    return path


@pytest.fixture(scope="module")
def expected(folder):
    """The model of the folder, not to be changed."""
    return StableDiffusion(preset=folder / "model")


@pytest.fixture(scope="module")
def model(plain):
    """A model of zeros, which gets one VAE after the other."""
    return StableDiffusion(preset=plain)


OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def of_diffusers(folder, old=False):
    tensors = load_file(folder / "model" / WEIGHTS)
    return {re.sub("|".join(OLD), lambda x: OLD[x[0]], name) if old else name: x for name, x in tensors.items()}


def of_ldm(folder, prefix="", rest=()):
    tensors = load_file(folder / "model.safetensors")
    begin = "first_stage_model."
    its = {prefix + name.removeprefix(begin): x for name, x in tensors.items() if name.startswith(begin)}
    return its | dict.fromkeys(rest, np.zeros(2, "float32"))


FILES = {
    "of diffusers": of_diffusers,
    "of diffusers until 0.17": lambda folder: of_diffusers(folder, old=True),
    "of LDM": of_ldm,
    "of LDM, with its training": lambda folder: of_ldm(folder, rest=["loss.logvar", "model_ema.decay"]),
    "of LDM, with a prefix": lambda folder: of_ldm(folder, prefix="first_stage_model."),
    "of a whole model": lambda folder: load_file(folder / "model.safetensors"),
}


def weights(model, *names):
    return [x for name in names for x in getattr(model, name).get_weights()]


@pytest.mark.backend
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_every_form_of_a_vae(folder, model, expected, tmp_path, file, suffix):
    tensors = {name: np.ascontiguousarray(x) for name, x in FILES[file](folder).items()}
    path = tmp_path / f"vae.{suffix}"
    if suffix == "ckpt":
        torch = pytest.importorskip("torch")
        torch.save({"state_dict": {name: torch.from_numpy(x) for name, x in tensors.items()}}, path)
    else:
        save_file(tensors, path)
    before = model.decoder
    model.load_vae(path)
    assert model.decoder is not before
    names = ["decoder", "image_encoder"]
    for ours, theirs in zip(weights(model, *names), weights(expected, *names), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_vae_stays_after_unload(folder, plain):
    model = StableDiffusion.from_preset(plain, vae=folder / "model")
    before = weights(model, "decoder", "image_encoder")
    model.unload()
    for ours, theirs in zip(weights(model, "decoder", "image_encoder"), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(map(np.any, before))


def test_a_vae_brings_its_own_scaling_factor(folder, plain, tmp_path):
    shutil.copytree(folder / "model/vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    model = StableDiffusion(preset=plain)
    model.load_vae(tmp_path / "vae")
    assert model.architecture.autoencoder.scaling_factor == 0.5
    assert model.decoder.architecture.autoencoder.scaling_factor == 0.5
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "latent_channels": 3}))
    before = weights(model, "decoder")
    with pytest.raises(CheckpointMismatchError, match=r"latent channels: 3, not 4.*Received: vae="):
        model.load_vae(tmp_path / "vae")
    assert all(map(np.array_equal, weights(model, "decoder"), before))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "scheduler"])
def test_a_folder_may_lack_what_is_given(folder, expected, tmp_path, part):
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(CorruptCheckpointError, match=part):
        StableDiffusion(preset=tmp_path / "model")
    model = StableDiffusion.from_preset(tmp_path / "model", **{part: folder / "model" / part})
    names = ["decoder", "text_encoder"]
    assert all(map(np.array_equal, weights(model, *names), weights(expected, *names)))
    assert model.schedule.keys() == expected.schedule.keys()


def test_a_file_may_lack_a_vae(build, tmp_path):
    shape = replace(SMALL.diffusion_model, levels=(Level(32, 8, 1), Level(64, 8, 0)), groups=32)
    architecture = replace(SMALL, name="custom", diffusion_model=shape)
    single_file.save(tmp_path / "whole.safetensors", architecture, **build(architecture))
    tensors = load_file(tmp_path / "whole.safetensors")
    left = {name: x + 1 for name, x in tensors.items() if not name.startswith("first_stage_model.")}
    save_file(left, tmp_path / "some.safetensors")
    with pytest.raises(
        CheckpointMismatchError, match=r"no VAE. Give one as well: from_preset\('some.safetensors', vae="
    ):
        single_file.SingleFile(tmp_path / "some.safetensors")
    read = single_file.SingleFile(tmp_path / "some.safetensors", optional=["vae"])
    assert read.architecture.diffusion_model == shape
    network = build(read.architecture, ["diffusion_model"])
    read.load(**network)
    assert all(map(np.any, network["diffusion_model"].get_weights()))


def test_a_scheduler_of_its_own(plain, tmp_path):
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    for scheduler in (config, tmp_path, tmp_path / "scheduler_config.json"):
        model = StableDiffusion(preset=plain, scheduler=scheduler)
        assert (model.sampler, model.schedule["spacing"]) == ("euler", "trailing")
        assert model.architecture.prediction_type == model.schedule["prediction_type"] == "v_prediction"
    del config["prediction_type"]
    assert StableDiffusion(preset=plain, scheduler=config).schedule["prediction_type"] == "epsilon"
    model = StableDiffusion(preset=plain, scheduler=config, prediction_type="sample")
    assert model.schedule["prediction_type"] == model.architecture.prediction_type == "sample"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vae": 3}, TypeError, "`vae` must be a folder or a file"),
        ({"vae": "nowhere"}, CorruptCheckpointError, "no such folder or file"),
        ({"vae": "."}, CheckpointError, "missing"),
        ({"scheduler": "euler"}, CorruptCheckpointError, "no scheduler_config.json"),
        ({"scheduler": 3}, TypeError, "samplers are named in calls"),
    ],
)
def test_what_is_no_part_is_refused(plain, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        StableDiffusion(preset=plain, **arguments)
    assert "Received: " in str(caught.value)


def test_random_weights_take_no_parts(folder):
    with pytest.raises(ValueError, match=r"not to random weights. Received: vae"):
        StableDiffusion(preset=SMALL, vae=folder / "model")


def test_a_text_encoder_of_another_width_is_refused(plain, build, tmp_path):
    shapes = {"text_encoder": TextEncoderShape(width=8, layers=2, heads=2)}
    other = replace(SMALL, name="custom", diffusion_model=replace(SMALL.diffusion_model, context=8), **shapes)
    diffusers_folder.save(tmp_path / "other", other, **build(other))
    with pytest.raises(CheckpointMismatchError, match="cross_attention_dim=16, but the text encoders give 8"):
        StableDiffusion(preset=plain, text_encoder=tmp_path / "other")


def write_gguf(path, tensors):
    """Writes a file as ComfyUI-GGUF does: rows of 256 values where those of a tensor have another length; Q8_0."""
    keys, entries, data, expected = [], [], b"", {}
    for name, values in tensors.items():
        stored, kind = values, 0
        if values.size % 256 == 0 and values.ndim > 1:
            keys.append(text(f"comfy.gguf.orig_shape.{name}") + struct.pack("<IIQ", 9, 5, values.ndim))
            keys[-1] += struct.pack(f"<{values.ndim}i", *values.shape)
            stored, kind = values.reshape(-1, 256), 8
        entries.append(text(name) + struct.pack("<I", stored.ndim))
        entries[-1] += struct.pack(f"<{stored.ndim}QIQ", *stored.shape[::-1], kind, len(data))
        content, expected[name] = (values.tobytes(), values) if kind == 0 else as_q8_0(values)
        data += content + bytes(-len(content) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys)) + b"".join(keys + entries)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return expected


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def as_q8_0(values):
    """The blocks of values, and what they stand for."""
    rows = values.reshape(-1, 32)
    scale = (np.abs(rows).max(1) / 127).astype("f2")
    codes = np.rint(rows / scale.astype("f4")[:, None]).clip(-128, 127).astype("i1")
    blocks = np.array([*zip(scale, codes, strict=True)], [("d", "<f2"), ("q", "i1", 32)])
    return blocks.tobytes(), (codes * scale.astype("f4")[:, None]).reshape(values.shape)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_diffusion_model_of_gguf(folder, plain, tmp_path, prefix):
    """With and without the prefix of whole models."""
    begin, path = "model.diffusion_model.", tmp_path / "unet-Q8_0.gguf"
    tensors = {n: x for n, x in load_file(folder / "model.safetensors").items() if n.startswith(begin)}
    expected = write_gguf(path, {prefix + name.removeprefix(begin): x for name, x in tensors.items()})
    model = StableDiffusion.from_preset(plain, diffusion_model=path)
    wanted, _ = find_targets({"diffusion_model": model.diffusion_model}, SMALL, ldm=True)
    for target in wanted["unet"]:
        values = expected[prefix + target.name.removeprefix(begin)]
        np.testing.assert_array_equal(stored(target.values(), target.layout), values)
    assert not np.any(weights(model, "decoder")[0])
    model.unload()
    assert np.any(weights(model, "diffusion_model")[0])


def test_a_diffusion_model_that_does_not_fit_is_named(plain, tmp_path):
    path = tmp_path / "unet.gguf"
    write_gguf(path, {"input_blocks.0.0.weight": np.zeros((8, 9, 3, 3), "float32")})
    with pytest.raises(CheckpointMismatchError, match=r"(?s)missing: unet.*time_embed\.0.*unet\.gguf"):
        StableDiffusion.from_preset(plain, diffusion_model=path)
    with pytest.raises(CheckpointMismatchError, match="which from_preset takes as `diffusion_model`"):
        StableDiffusion.from_preset(path)
    with pytest.raises(TypeError, match="`diffusion_model` must be a folder or a file"):
        StableDiffusion.from_preset(plain, diffusion_model=3)
