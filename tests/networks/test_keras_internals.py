"""Keras' private names: what is done where a Keras lacks them."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.architectures import TINY
from keras_diffusion.networks import graphs, keras_internals
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.system.memory import aligned_array


def waiting_variables():
    with keras.StatelessScope(initialize_variables=False):
        return [keras.Variable("zeros", shape=(2, 3), dtype=dtype) for dtype in ("float32", "float16")]


def first_values(variables):
    values = []
    for i, variable in enumerate(variables):
        array = aligned_array(np.empty, variable.shape, variable.dtype)
        array[:] = i + 1
        values.append([array])
    return list(zip(variables, values, strict=True))


@pytest.mark.backend
@pytest.mark.parametrize("missing", [None, "VALUE", "INITIALIZER"])
def test_initializes_variables(missing, monkeypatch):
    if missing:
        monkeypatch.setattr(keras_internals, missing, "_in_no_keras")
    variables = waiting_variables()
    assert not any(map(keras_internals.has_value, variables))
    keras_internals.initialize(first_values(variables))
    for i, variable in enumerate(variables):
        assert keras_internals.has_value(variable) is (missing != "VALUE")
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), np.full((2, 3), i + 1, variable.dtype))


@pytest.mark.backend
def test_other_variables_go_on_waiting():
    others, variables = waiting_variables(), waiting_variables()
    keras_internals.initialize(first_values(variables))
    assert all(map(keras_internals.has_value, variables))
    assert not any(map(keras_internals.has_value, others))
    with keras.StatelessScope():
        pass  # Keras' own initialization at the end of a scope
    assert not any(ops.convert_to_numpy(variable).any() for variable in others)


@pytest.mark.backend
def test_variables_wait_again_after_an_interruption(monkeypatch):
    variables = waiting_variables()

    def interrupt(array):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras_internals, "OwnedArray", interrupt)
        with pytest.raises(KeyboardInterrupt):
            keras_internals.initialize(first_values(variables))
    assert not any(map(keras_internals.has_value, variables))
    keras_internals.initialize(first_values(variables))
    assert all(map(keras_internals.has_value, variables))


def test_networks_run_as_a_whole_where_keras_hides_their_graph(monkeypatch):
    decoder = Decoder(architecture=TINY)
    latents = np.ones((1, 4, 4, TINY.autoencoder.latent_channels), "float32")
    expected = graphs.LayerByLayer(decoder)(latents)
    assert graphs.nodes(decoder)
    assert len(keras_internals.all_layers(decoder)) > len(decoder.layers) + 1
    monkeypatch.setattr(keras_internals, "NODES", "_in_no_keras")
    monkeypatch.setattr(keras_internals, "LAYERS", "_in_no_keras")
    assert not graphs.nodes(decoder)
    assert keras_internals.all_layers(decoder) == [decoder, *decoder.layers]
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (graphs.LayerByLayer(decoder)(latents), expected)), atol=1e-5)


def test_knows_the_operation_that_indexes():
    x = keras.Input((3,))
    network = keras.Model(x, x[..., :1])
    assert [type(node.operation) for node in graphs.nodes(network)] == [keras_internals.indexing()]
