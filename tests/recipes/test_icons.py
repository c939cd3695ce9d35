"""The parts of the recipe of the model "icons" that its training stands on."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "recipes" / "icons"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ("feed", "model", "muon"):
        sys.modules.pop(name, None)


def test_muon_makes_matrices_orthogonal_and_keeps_their_places():
    import muon

    generator = np.random.default_rng(0)
    shapes = {"a/kernel": (3, 3, 4, 8), "b/bias": (8,), "c/kernel": (36, 8), "d/kernel": (4, 16), "embeddings": (9, 4)}
    weights = {name: generator.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
    layout = muon.Layout.of(weights)
    assert set(layout.groups) == {(2, 36, 8), (1, 4, 16)}
    vector = layout.join(weights)
    for name, value in layout.split(vector).items():
        np.testing.assert_array_equal(value, weights[name])
    state = muon.start(layout, vector)
    after, _, finite = muon.update(layout, vector, vector, state, 1.0)
    assert finite
    change = layout.split(vector - after - muon.DECAY * vector)
    for name, largest in (("a/kernel", 36), ("c/kernel", 36), ("d/kernel", 16)):
        values = np.linalg.svd(np.reshape(change[name], (-1, shapes[name][-1])), compute_uv=False)
        np.testing.assert_allclose(values / (0.2 * largest**0.5), 1, atol=0.4)
    np.testing.assert_allclose(np.abs(change["b/bias"]), 1, rtol=1e-4)
    after, same, finite = muon.update(layout, vector, vector * np.nan, state, 1.0)
    assert not finite
    np.testing.assert_array_equal(after, vector)
    np.testing.assert_array_equal(same.first, state.first)


def test_standardized_latents_decode_to_the_same():
    import model

    generator = np.random.default_rng(0)
    names = {"image_encoder/quant_conv": (4, 4), "decoder/post_quant_conv": (2, 2)}
    weights = {f"{name}/kernel": generator.standard_normal(shape) for name, shape in names.items()}
    weights |= {f"{name}/bias": generator.standard_normal(shape[-1]) for name, shape in names.items()}
    x = generator.standard_normal((50, 2, 2, 4))

    def both(weights):
        encoder, decoder = ((weights[f"{name}/kernel"], weights[f"{name}/bias"]) for name in names)
        moments = x @ encoder[0] + encoder[1]
        return moments, moments[..., :2] @ decoder[0] + decoder[1]

    moments, decoded = both(weights)
    moments, same = both(model.standardized(weights, moments[..., :2]))
    np.testing.assert_allclose(same, decoded, atol=1e-4)
    np.testing.assert_allclose(moments[..., :2].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(moments[..., :2].std((0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(moments[..., 2:], model.LOG_VARIANCE)


def test_files_hold_all_weights_in_pieces(tmp_path, monkeypatch):
    import model

    monkeypatch.setattr(model, "PIECE", 2**17)
    weights = {f"x/{i}": np.full((100, 100), i, "float32") for i in range(9)}
    model.write(tmp_path, "diffusion", weights, {"steps": 3})
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"diffusion_{i}.safetensors" for i in range(3)]
    assert all(file.stat().st_size <= model.PIECE for file in files)
    found = model.read(tmp_path, "diffusion")
    assert found.keys() == weights.keys()
    assert all((found[name] == i).all() for i, name in enumerate(weights))


def test_captions_have_one_length():
    import feed

    assert feed.fixed([8, 1, 9], 5) == [8, 1, 9, 9, 9]
    assert feed.fixed([8, 1, 2, 3, 9], 5) == [8, 1, 2, 3, 9]
    assert feed.fixed([8, 1, 2, 3, 4, 9], 5) == [8, 1, 2, 3, 9]
