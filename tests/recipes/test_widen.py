"""The parts of the recipe that makes the model "emoji" larger: weights that are kept, and what is shown how often."""

import json
from dataclasses import replace

import numpy as np
import pytest

from keras_diffusion.architectures import TINY


def test_a_level_more_keeps_the_weights_of_the_others():
    import grow

    small, large = (
        replace(TINY, autoencoder=replace(TINY.autoencoder, channels=channels)) for channels in ((8, 16), (4, 8, 16))
    )
    old, new = (grow.networks(shape, initialize=False) for shape in (small, large))
    for network in old:
        for variable in network.variables:
            variable.assign(np.full(variable.shape, 2.0))
    grow.grow(old, new)
    levels = ["conv_in", "down_blocks_0", "down_blocks_1"], ["up_blocks_1", "up_blocks_2", "conv_norm_out", "conv_out"]
    for network, places in zip(new, levels, strict=True):
        learning = {v.path.split("/")[0] for v in network.variables if v.trainable}
        assert {name for name in places if any(path.startswith(name) for path in learning)} == set(places)
        assert not any(path.startswith(("mid_block", "quant", "post_quant", "up_blocks_0")) for path in learning)
        for variable in network.variables:
            assert variable.trainable or np.all(np.asarray(variable) == 2)
    kept = {v.path for v in new[0].variables if not v.trainable}
    assert {"down_blocks_1_resnets_0/conv2/kernel", "down_blocks_2_resnets_0/conv1/kernel"} <= kept
    assert "down_blocks_0_resnets_0/conv2/kernel" not in kept


def test_emoji_in_both_sources_have_the_captions_of_both():
    import dataset
    import widen

    images = np.zeros((3, 64, 64, 3), "uint8")
    labels = ["pizza", "red square", "cat"]
    emoji = dataset.Dataset(images, np.zeros(3, int), np.arange(3), np.ones(3, bool), ["noto"], labels, [[], [], []])
    scenes = {
        "captions": [json.dumps([[text, 1.0]]) for text in ("a castle", "a slice of pizza", "two cats", "a dog")],
        "labels": ["castle", "Pizza"],
        "weights": np.array([2.0, 1.0]),
    }
    old, new, captions, shares = widen.join(emoji, scenes)
    assert (list(old), new) == ([0, 1, 2], [0, 2, 3])
    texts = [[text for text, _ in choices] for choices in captions]
    assert {"pizza", "a slice of pizza"} <= set(texts[0])
    assert texts[3:] == [["a castle"], ["two cats"], ["a dog"]]
    assert shares.sum() == pytest.approx(1)
    assert shares[3] / shares[0] == pytest.approx(2)
    assert shares[4:].sum() == pytest.approx(widen.SCENES)

    examples = widen.Examples(np.zeros((6, 16, 16, 4), "float32"), captions, shares)
    drawn = [examples.choose(step, np.random.default_rng(step)) for step in range(200)]
    places, rows = (np.concatenate(part) for part in zip(*drawn, strict=True))
    np.testing.assert_allclose(np.bincount(places, minlength=6) / len(places), shares, atol=0.02)
    assert np.mean(rows[places == 3] == examples.empty) == pytest.approx(widen.EMPTY, abs=0.03)
    assert set(rows[places == 4]) == {examples.empty, examples.captions[4][0]}
    (noisy, embedding, tokens), velocity, weight = examples.batch(0)
    assert noisy.shape == velocity.shape == (widen.BATCH, 16, 16, 4)
    assert len(embedding) == len(tokens) == len(weight) == widen.BATCH
