"""Unloading: the memory is given back, and the next picture is the same."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

from .small import SMALL

QUICK = {"num_steps": 2, "verbose": 0, "seed": 0}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("preset") / "model"
    StableDiffusion(preset=SMALL).save_to_preset(path)
    return path


@pytest.mark.backend
def test_the_next_picture_is_the_same_and_the_memory_is_free(preset):
    model = StableDiffusion.from_preset(preset, dtype="float32_from_float16")
    options = {"image": np.full((16, 16, 3), 0.3), "strength": 0.5, "deep_cache": 2, **QUICK}
    before = model.text_to_image("a cat", **options)
    model.preview(np.zeros((1, 8, 8, 4), "float32"))
    networks = model.text_encoder, model.diffusion_model, model.decoder, model.image_encoder
    variables = [variable for network in networks for variable in network.variables]
    values = [getattr(variable.value, "handle", variable.value) for variable in variables]  # TensorFlow's memory
    left = [weakref.ref(each) for each in (*variables, *values)]
    del networks, variables, values
    model.unload()
    gc.collect()
    assert not [each for each in left if each() is not None]
    np.testing.assert_array_equal(model.text_to_image("a cat", **options), before)
    assert model.diffusion_model.get_config()["dtype"] == "float32_from_float16"


@pytest.mark.backend
def test_it_may_be_done_again(preset):
    model = StableDiffusion.from_preset(preset)
    model.unload()
    model.unload()
    model.diffusion_model = own = DiffusionModel(architecture=SMALL)
    assert model.decoder.name == "decoder"
    assert model.diffusion_model is own
    with pytest.raises(AttributeError, match="decoders"):
        _ = model.decoders


@pytest.mark.parametrize("name", ["diffusion_model", "image_encoder"])
def test_it_is_loaded_once_for_many_threads(preset, name):
    model = StableDiffusion.from_preset(preset)
    model.unload()
    with ThreadPoolExecutor(8) as pool:
        networks = set(pool.map(lambda _: getattr(model, name), range(8)))
    assert networks == {model._loaded[name]}


def test_a_property_that_lacks_something_says_what(preset):
    class Model(StableDiffusion):
        @property
        def size(self):
            return self.decoder.sise

    with pytest.raises(AttributeError, match="sise"):
        _ = Model.from_preset(preset).size


def test_a_tokenizer_of_ones_own_stays(preset):
    model = StableDiffusion.from_preset(preset)
    model.tokenizer = own = SimpleTokenizer()
    model.unload()
    assert model.tokenizer is own


def test_random_weights_are_not_lost_unasked():
    model = StableDiffusion(preset=SMALL)
    network = model.diffusion_model
    with pytest.raises(ValueError, match="random weights"):
        model.unload()
    assert model.diffusion_model is network
    model.unload(discard=True)
    assert model.diffusion_model is not network


def test_a_network_of_ones_own_is_not_lost_unasked(preset):
    model = StableDiffusion.from_preset(preset)
    model.diffusion_model = own = DiffusionModel(architecture=SMALL)
    with pytest.raises(ValueError, match="assigned to diffusion_model"):
        model.unload()
    assert model.diffusion_model is own
    model.unload(discard=True)
    assert model.diffusion_model is not own


@pytest.mark.parametrize(("name", "network"), [("decoder", Decoder), ("image_encoder", ImageEncoder)])
def test_nor_one_that_was_assigned_before_any_was_loaded(preset, name, network):
    model = StableDiffusion.from_preset(preset)
    model.unload()
    setattr(model, name, own := network(architecture=SMALL))
    with pytest.raises(ValueError, match=f"assigned to {name}"):
        model.unload()
    assert getattr(model, name) is own


def test_loras_and_words_are_not_lost_unasked(preset, monkeypatch):
    model = StableDiffusion.from_preset(preset)
    monkeypatch.setattr(model._loras, "_loaded", {"style": (1.0, {})})
    model.tokenizer.add_tokens("<cat-toy>", 1)
    with pytest.raises(ValueError, match=r"the LoRAs \['style'\]; the words \['<cat-toy>'\]"):
        model.unload()
    model.unload(discard=True)
    assert not model.loras
    assert not model.tokenizer.added_tokens


def test_networks_are_in_memory_in_turn(preset, caplog):
    usual, model = (StableDiffusion.from_preset(preset, offload=offload) for offload in (False, True))
    assert model._present() == {}
    present, variables = [], []

    def callback(step, timestep, latents):
        present.append({*model._present()})
        variables.extend(map(weakref.ref, model.diffusion_model.variables))

    found = model.text_to_image("a cat", callback=callback, **QUICK)
    np.testing.assert_array_equal(found, usual.text_to_image("a cat", **QUICK))
    assert model._present() == {}
    gc.collect()
    assert present == [{"diffusion_model"}] * 2
    assert not [variable for variable in variables if variable() is not None]
    for each in usual, model:
        kernel = each.diffusion_model.get_layer("conv_out").kernel
        kernel.assign(2 * kernel)
    np.testing.assert_array_equal(*(each.text_to_image("a dog", **QUICK) for each in (usual, model)))
    assert "`offload`: diffusion_model stays in memory, for it was changed" in caplog.text
    with pytest.raises(ValueError, match="offload=True"):
        StableDiffusion(preset=SMALL, offload=True)
