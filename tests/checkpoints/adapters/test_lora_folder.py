"""LoRAs that prompts name and a folder holds."""

import shutil

import numpy as np
import pytest

from keras_diffusion import GenerationCancelled, StableDiffusion
from keras_diffusion.checkpoints.adapters import lora_file, lora_folder

from ...golden import lora

PEFT, KOHYA = lora.FILES.values()
SETTINGS = {"seed": 0, "num_steps": 2, "verbose": 0, "prompt_weighting": True, "output": "latents"}


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=lora.ARCHITECTURE)


@pytest.fixture
def folder(model, tmp_path):
    (tmp_path / "styles").mkdir()
    shutil.copy(PEFT, tmp_path / "styles/one.safetensors")
    shutil.copy(KOHYA, tmp_path / "two.safetensors")
    (tmp_path / "two.txt").touch()
    model.lora_folder = tmp_path
    yield tmp_path
    model.unload_lora()
    model.lora_folder = None


def weights(model):
    return [x.tobytes() for network in (model.text_encoder, model.diffusion_model) for x in network.get_weights()]


@pytest.mark.backend
def test_a_prompt_draws_with_loras_and_leaves_no_trace(model, folder, monkeypatch):
    plain, before = model.text_to_image("a  cat", **SETTINGS), weights(model)
    compiled = model._engine.compilations
    drawn = model.text_to_image("a <lora:one:0.5:0.8> cat<lora:two:-1>", **SETTINGS)
    assert weights(model) == before
    assert model.loras == {}
    monkeypatch.setattr(lora_file, "changes", None)  # read once
    np.testing.assert_array_equal(model.text_to_image("a <lora:one:0.5:0.8> cat<lora:two:-1>", **SETTINGS), drawn)
    monkeypatch.undo()
    assert not np.array_equal(drawn, plain)

    model.load_lora(folder / "styles/one.safetensors", {"text_encoder": 0.5, "diffusion_model": 0.8})
    model.load_lora(folder / "two.safetensors", -1)
    np.testing.assert_array_equal(model.text_to_image("a  cat", **SETTINGS), drawn)
    np.testing.assert_array_equal(model.text_to_image("a <lora:one:0> cat<lora:two:0>", **SETTINGS), plain)  # for once
    assert model.loras == {"one": {"text_encoder": 0.5, "diffusion_model": 0.8}, "two": -1}
    assert model._engine.compilations == compiled


@pytest.mark.backend
def test_a_generation_that_stops_leaves_no_trace(model, folder):
    before, seen = weights(model), []
    with pytest.raises(GenerationCancelled):
        model.text_to_image("<lora:one>", callback=lambda *_: bool(seen.append(weights(model))), **SETTINGS)
    assert seen[0] != before
    assert weights(model) == before
    with pytest.raises(ValueError, match="no_such_sampler"):
        model.text_to_image("<lora:one>", sampler="no_such_sampler", **SETTINGS)
    assert weights(model) == before


def test_tags_that_no_lora_answers_are_refused(model, folder):
    for prompt, message in {
        "<lora:onee:1>": "there are one. Received: name='onee'",
        "<lora:../two:1>": "no such LoRA",
        "<lora:styles:1>": "no such LoRA",
        "<hypernet:one:1>": "must be <lora:name:weight>",
    }.items():
        with pytest.raises(ValueError, match=message):
            model.text_to_image(prompt, **SETTINGS)
    shutil.copy(PEFT, folder / "one.ckpt")
    with pytest.raises(ValueError, match="Several LoRAs"):
        model.text_to_image("<lora:one:1>", **SETTINGS)
    model.lora_folder = None
    with pytest.raises(ValueError, match=r"set `model.lora_folder` .*lora_folder=None"):
        model.text_to_image("<lora:one:1>", **SETTINGS)
    for method in (model.encode_text, model.denoise):
        with pytest.raises(ValueError, match="leave out <lora:one:1>"):
            method("<lora:one:1>", prompt_weighting=True)


def test_tags_that_are_words_are_named(model, caplog):
    model.encode_text("a <lora:one:1>")
    model.text_to_image("a", negative_prompt="<lora:two:1>", **{**SETTINGS, "num_steps": 1})
    first, second = caplog.messages
    assert first.startswith("<lora:one:1> is words unless prompt_weighting=True. Received: prompt=")
    assert second.startswith("<lora:two:1> is words in a negative prompt, as to A1111.")


def test_of_two_formats_safetensors_are_taken(tmp_path):
    for suffix in ("pt", "safetensors"):
        (tmp_path / f"one.{suffix}").touch()
    assert lora_folder.find(tmp_path, "one") == tmp_path / "one.safetensors"
