"""LoRAs in training: what they add, where, and that drawing with one is what was trained."""

import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_diffusion import StableDiffusion
from keras_diffusion.checkpoints.adapters import lora_file
from keras_diffusion.generation.size_ids import added_vectors
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.training.lora import Lora
from keras_diffusion.training.trainer import Trainer

from ..golden import lora
from ..test_sdxl import TINY_SDXL

SUFFIXES = {"kohya": ".safetensors", "diffusers": ".safetensors", "peft": ""}


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=lora.ARCHITECTURE)


@pytest.fixture(scope="module")
def learner(model):
    """A LoRA of every kind of layer with an alpha that is not its rank, as if it had learned something."""
    learner = Lora(model, rank=2, alpha=3, layers="all", text_encoder=True)
    generator = np.random.default_rng(0)
    for variable in learner.variables:
        variable.assign(generator.standard_normal(variable.shape) / 10)
    return learner


def read(model, path):
    networks = {"text_encoder": model.text_encoder, "diffusion_model": model.diffusion_model}
    return lora_file.changes(path, networks)


def bits(model):
    networks = model.text_encoder, model.diffusion_model
    return [np.array(ops.convert_to_numpy(v)).tobytes() for network in networks for v in network.variables]


@pytest.mark.backend
def test_drawing_with_it_is_what_was_trained(model, learner):
    generator = np.random.default_rng(1)
    latent = generator.standard_normal((1, 8, 8, 4)).astype("float32")
    timestep = timestep_embedding([500], 16)
    tokens = model.tokenizer.tokenize("a cat", pad_token=model.architecture.text_encoder.pad_token)
    inputs = {"latent": latent, "timestep_embedding": timestep, "tokens": tokens}
    before, trained = bits(model), ops.convert_to_numpy(learner(inputs))
    plain = model.diffusion_model([latent, timestep, model.encode_text("a cat")])

    learner.update_model()
    learner.update_model()
    drawn = ops.convert_to_numpy(model.diffusion_model([latent, timestep, model.encode_text("a cat")]))
    assert len(model.loras) == 1
    learner.reset_model()

    np.testing.assert_allclose(trained, drawn, atol=2e-5 * np.abs(drawn).max())
    assert np.abs(drawn - ops.convert_to_numpy(plain)).max() > 0.1 * np.abs(drawn).max()
    assert bits(model) == before


@pytest.mark.backend
@pytest.mark.parametrize("format", SUFFIXES)
def test_files_are_read_back_bit_for_bit(model, learner, format, tmp_path):
    path = tmp_path / f"new{SUFFIXES[format]}"
    learner.save(path, format)
    changes = {}
    for file in sorted(path.glob("*/adapter_model.safetensors")) if path.is_dir() else [path]:
        changes |= read(model, file)
    stored = learner.stored()
    assert changes.keys() == {f"{key}.weight" for key in stored}
    for key, change in changes.items():
        halves = stored[key.removesuffix(".weight")]
        np.testing.assert_array_equal(change.parts["down"], halves.down)
        np.testing.assert_array_equal(change.parts["up"], halves.up.reshape(change.parts["up"].shape))
        assert change.factor == pytest.approx(3 / 2)


def test_a_new_one_changes_nothing_and_starts_from_its_seed(model):
    first, again, other = (Lora(model, seed=seed) for seed in (1, 1, 2))
    for halves, same, different in zip(*(x.tensors().values() for x in (first, again, other)), strict=True):
        down, up = map(ops.convert_to_numpy, halves)
        bound = down.shape[0] ** -0.5
        assert 0.8 * bound < np.abs(down).max() <= bound
        assert not up.any()
        np.testing.assert_array_equal(down, ops.convert_to_numpy(same.down))
        assert not np.array_equal(down, ops.convert_to_numpy(different.down))


def test_layers(model):
    attention = Lora(model).targets
    assert {key.rpartition("attn")[2][2:] for key in attention} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert not any(key.startswith("text_encoder") for key in attention)
    with_text = Lora(model, text_encoder=True).targets
    assert {key for key in with_text if key.startswith("diffusion_model")} == attention.keys()
    assert "text_encoder/encoder.layers.1.self_attn.out_proj" in with_text
    linear = Lora(model, layers="linear").targets
    assert "diffusion_model/mid_block.attentions.0.proj_in" in linear
    assert not any("resnets" in key for key in linear)
    assert "diffusion_model/up_blocks.0.upsamplers.0.conv" in Lora(model, layers="all").targets
    assert {key.rpartition("attn")[2] for key in Lora(model, layers=["attn2.to_v"]).targets} == {"2.to_v"}
    assert set(Lora(model, layers=r"mid_block.*proj_in").targets) == {"diffusion_model/mid_block.attentions.0.proj_in"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank"),
        ({"rank": 17}, ValueError, "`rank` must be at most 16, for the layer diffusion_model/down_blocks"),
        ({"rank": 2.0}, TypeError, "rank"),
        ({"alpha": 0}, ValueError, "alpha"),
        ({"layers": "nothing"}, ValueError, r"such as .*conv_in"),
        ({"layers": "("}, ValueError, "regular expression"),
        ({"text_encoder": 1}, TypeError, "text_encoder"),
    ],
)
def test_wrong_options_are_named(model, options, error, message):
    with pytest.raises(error, match=message):
        Lora(model, **options)


def test_sdxl(tmp_path):
    """A step takes both contexts, pooled vectors, and size ids as diffusers' train_text_to_image_sdxl.py has."""
    model = StableDiffusion(preset=TINY_SDXL)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), "uint8")).save(tmp_path / "0.png")
    trainer = Trainer(model, "lora", rank=2)
    x, *_ = trainer.examples(tmp_path, "a cat")[0]
    encoded = model.encode_text("a cat")
    np.testing.assert_array_equal(x["context"], encoded.context)
    ids = np.float32([24, 40, 0, (27 - 16) // 2, 16, 16])
    np.testing.assert_array_equal(x["added"], added_vectors(encoded.pooled, ids, 8))
    expected = model.diffusion_model([x["latent"], x["timestep_embedding"], x["context"], x["added"]])
    difference = ops.convert_to_numpy(trainer(x)) - ops.convert_to_numpy(expected)
    assert np.abs(difference).max() < 1e-5
    trainer.compile()
    assert trainer.memory().activations > 0
    trainer.update_model()
    assert len(model.loras) == 1


@pytest.mark.parametrize(("train", "options"), [("lora", {"text_encoder": True}), ("lcm_lora", {}), ("controlnet", {})])
def test_what_sdxl_cannot_learn_is_named(train, options):
    with pytest.raises(ValueError, match="Of SDXL, a LoRA or the diffusion model can be trained, without text"):
        Trainer(StableDiffusion(preset=TINY_SDXL), train, **options)
