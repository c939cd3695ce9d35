"""Textual inversion: the vectors of a new word, their files, and that nothing else changes."""

import copy

import numpy as np
import pytest
from keras import ops

from keras_diffusion import SimpleTokenizer, StableDiffusion
from keras_diffusion.checkpoints.adapters import textual_inversion
from keras_diffusion.checkpoints.adapters.lora_fusion import Loras
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.training.embedding import Embedding
from keras_diffusion.training.folder import Record

from ..golden import lora


@pytest.fixture(scope="module")
def built():
    return StableDiffusion(preset=lora.ARCHITECTURE)


@pytest.fixture
def model(built):
    """A model of its own but for the networks, which learning a word leaves as they are."""
    model = copy.copy(built)
    model.tokenizer, model._loras = SimpleTokenizer(), Loras()
    return model


def table(model):
    [variable] = [v for v in model.text_encoder.variables if v.path == textual_inversion.EMBEDDING]
    return np.array(ops.convert_to_numpy(variable))


@pytest.mark.backend
def test_drawing_with_it_is_what_was_trained(model):
    learner = Embedding(model, "<Cat-Toy>", "toy", vectors=2)
    known = table(model)
    [toy] = model.tokenizer.encode("toy")[1:-1]
    np.testing.assert_array_equal(ops.convert_to_numpy(learner.vectors), known[[toy, toy]])
    assert [v.path for v in learner.trainable_variables] == [learner.vectors.path]

    learned = np.random.default_rng(0).standard_normal((2, 16)).astype("float32")
    learner.vectors.assign(learned)
    pad = model.architecture.text_encoder.pad_token
    inputs = {
        "latent": np.random.default_rng(1).standard_normal((1, 8, 8, 4)).astype("float32"),
        "timestep_embedding": timestep_embedding([500], 16),
        "tokens": learner.tokenizer.tokenize("a <cat-toy> on a table", pad_token=pad),
    }
    trained = ops.convert_to_numpy(learner(inputs))
    for vectors in (np.zeros((2, 16)), learned):  # the second time the word is there
        learner.vectors.assign(vectors)
        learner.update_model()
        np.testing.assert_array_equal(table(model), np.concatenate([known, vectors]))
    context = model.encode_text("a <cat-toy> on a table")
    drawn = model.diffusion_model([inputs["latent"], inputs["timestep_embedding"], context])
    np.testing.assert_allclose(trained, ops.convert_to_numpy(drawn), atol=1e-5)
    np.testing.assert_allclose(trained, ops.convert_to_numpy(learner(inputs)), atol=1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("format", textual_inversion.FORMATS)
def test_files_are_read_back_bit_for_bit(model, format, tmp_path):
    learner = Embedding(model, "<toy>", "a red toy", vectors=3)
    assert len(set(map(tuple, ops.convert_to_numpy(learner.vectors)))) == 3
    learner.vectors.assign(np.random.default_rng(0).standard_normal((3, 16)))
    learner.save(tmp_path / "<toy>.safetensors", format)
    assert model.load_textual_inversion(tmp_path / "<toy>.safetensors") == "<toy>"
    np.testing.assert_array_equal(table(model)[-3:], ops.convert_to_numpy(learner.vectors))


def test_words_that_exist_and_others_that_came_meanwhile(model, tmp_path):
    with pytest.raises(ValueError, match="is token"):
        Embedding(model, "toy", "toy")
    first, second = Embedding(model, "<one>", "toy"), Embedding(model, "<two>", "toy")
    first.update_model()
    with pytest.raises(ValueError, match="has learned other words"):
        second.update_model()
    with pytest.raises(ValueError, match="is token"):
        Embedding(model, "<ONE>", "toy")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"word": 3}, TypeError, "`word` must be a str"),
        ({"initial_word": ""}, ValueError, "`initial_word` must have 1 to 1 tokens"),
        ({"initial_word": "red toy"}, ValueError, "with 2, vectors=1"),
        ({"vectors": 0}, ValueError, "`vectors`"),
        ({"vectors": 76}, ValueError, "`vectors`"),
    ],
)
def test_wrong_options_are_named(model, options, error, message):
    with pytest.raises(error, match=message):
        Embedding(model, **{"word": "<toy>", "initial_word": "toy", **options})


def test_captions_must_contain_the_word(model):
    learner = Embedding(model, "<toy>", "toy")
    learner.require_captions([Record("a.png", ("a <TOY>", "two <toy>s"))])
    with pytest.raises(ValueError, match=r"must contain the word '<toy>'. Received: 'a toy'"):
        learner.require_captions([Record("a.png", ("a <toy>", "a toy"))])
