from dataclasses import replace

import numpy as np
import pytest
from keras import ops

from keras_diffusion.architectures import TINY
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.networks.text_encoder import ACTIVATIONS, EncoderLayer, TextEncoder

from ..golden import comparison, networks
from ..golden.comparison import TOLERANCE, patching, setting, shows

CASES = [case.name for case in networks.cases("text_encoder")]


@pytest.mark.parametrize("name", CASES)
def test_computes_what_transformers_computes(name):
    assert comparison.error("text_encoder", name) < TOLERANCE


def normalise_after(self, x):
    x = self.layer_norm1(x + self.self_attn(x))
    return self.layer_norm2(x + self.mlp_fc2(self.activation(self.mlp_fc1(x))))


CHANGES = {
    "first epsilon 1e-6": ("sd1", setting("layer_norm1$", "epsilon", 1e-6)),
    "second epsilon 1e-6": ("sd1", setting("layer_norm2$", "epsilon", 1e-6)),
    "last epsilon 1e-6": ("sd1", setting("final_layer_norm$", "epsilon", 1e-6)),
    "every epsilon 1e-3": ("sd1", setting("layer_norm", "epsilon", 1e-3)),
    "erf for quick GELU": ("sd1", setting(r"encoder_layers_\d$", "activation", ACTIVATIONS["gelu"])),
    "quick for erf GELU": ("sd2", setting(r"encoder_layers_\d$", "activation", ACTIVATIONS["quick_gelu"])),
    "tanh for erf GELU": ("sd2", setting(r"encoder_layers_\d$", "activation", ops.gelu)),
    "half the heads": ("sd1", setting("self_attn$", "heads", 2)),
    "twice the heads": ("sd2", setting("self_attn$", "heads", 12)),
    "no causal mask": ("sd1", setting("self_attn$", "causal", False)),
    "norm after the residual": ("sd1", patching(EncoderLayer, "call", normalise_after)),
}


@comparison.once
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change, monkeypatch):
    name, apply = CHANGES[change]
    apply(monkeypatch, comparison.built("text_encoder", name))
    assert shows("text_encoder", name)


@comparison.once
def test_a_transposed_square_matrix_shows(monkeypatch):
    to_ours, to_stored = LAYOUTS["matrix"]
    skewed = (lambda x: x if x.shape[0] == x.shape[1] else to_ours(x), to_stored)
    monkeypatch.setitem(LAYOUTS, "matrix", skewed)
    assert shows("text_encoder", "sd1", comparison.build("text_encoder", "sd1"))


@pytest.fixture(scope="module")
def tiny():
    return TextEncoder(6, architecture=TINY)


TOKENS = np.array([[49406, 320, 1125, 49407, 49407, 49407], [49406, 2, 3, 4, 5, 49407]])
POSITIONS = np.arange(6)[None]


def test_takes_a_list_or_names(tiny):
    listed = ops.convert_to_numpy(tiny([TOKENS, POSITIONS]))
    named = ops.convert_to_numpy(tiny({"positions": POSITIONS, "tokens": TOKENS}))
    assert listed.shape == (2, 6, TINY.text_encoder.width)
    np.testing.assert_array_equal(named, listed)


def test_positions_are_given_once_or_for_each_prompt(tiny):
    once = ops.convert_to_numpy(tiny([TOKENS, POSITIONS]))
    each = ops.convert_to_numpy(tiny([TOKENS, np.repeat(POSITIONS, 2, axis=0)]))
    np.testing.assert_array_equal(once, each)


def test_a_token_changes_no_context_before_it(tiny):
    other = TOKENS.copy()
    other[:, 3] = 7
    difference = ops.convert_to_numpy(tiny([TOKENS, POSITIONS]) - tiny([other, POSITIONS]))
    changed = np.abs(difference).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(changed, [False, False, False, True, True, True])


def test_skipped_blocks_are_those_of_a_shorter_encoder(tiny):
    shorter = TextEncoder(6, architecture=replace(TINY, text_encoder=replace(TINY.text_encoder, layers=1)))
    by_name = {variable.path: variable for variable in tiny.variables}
    for variable in shorter.variables:
        variable.assign(by_name[variable.path])
    expected = ops.convert_to_numpy(shorter([TOKENS, POSITIONS]))
    np.testing.assert_allclose(ops.convert_to_numpy(tiny.skip([TOKENS, POSITIONS], 1)), expected, rtol=0, atol=1e-6)
    whole = ops.convert_to_numpy(tiny([TOKENS, POSITIONS]))
    np.testing.assert_allclose(ops.convert_to_numpy(tiny.skip([TOKENS, POSITIONS], 0)), whole, rtol=0, atol=1e-6)
    assert np.abs(expected - whole).max() > 0.01


def test_a_length_that_was_fixed_stays(tiny):
    with pytest.raises(ValueError, match="shape"):
        tiny([TOKENS[:, :5], POSITIONS[:, :5]])


def test_the_vocabulary_may_grow():
    model = TextEncoder(6, vocab_size=49410, architecture=TINY)
    context = ops.convert_to_numpy(model([np.full((1, 6), 49409), POSITIONS]))
    assert model.get_layer("embeddings_token_embedding").embeddings.shape[0] == 49410
    assert np.isfinite(context).all()


@pytest.mark.parametrize("vocabulary", [1000, 49408])
def test_the_pooled_vector_is_that_of_the_end_of_text(vocabulary):
    """Also in a part of the vocabulary with a word of its own: what comes after changes nothing, before it does."""
    shape = replace(TINY.text_encoder, vocabulary=vocabulary + 1, penultimate=True)
    model = TextEncoder(6, architecture=replace(TINY, text_encoder=shape))
    start, end = vocabulary - 2, vocabulary - 1
    rows = np.array([[start, 5, end, 0, 0, 0], [start, 5, end, 7, end + 1, 9], [start, 6, end, 0, 0, 0]])
    pooled = ops.convert_to_numpy(model([rows, np.tile(np.arange(6), (3, 1))])[1])
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-6)
    assert np.abs(pooled[0] - pooled[2]).max() > 1e-3
