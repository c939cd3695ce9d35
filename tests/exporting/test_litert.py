import warnings

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.exporting import litert
from keras_diffusion.exporting.inputs import export_inputs

from ..small import SMALL

tensorflow = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others have TensorFlow do it")


def load(folder, *names):
    """The functions of some networks in a folder, by name."""
    with warnings.catch_warnings(action="ignore"):  # it is ai_edge_litert's under its old name
        interpreters = {name: tensorflow.lite.Interpreter(str(folder / f"{name}.tflite")) for name in names}
    return {name: interpreter.get_signature_runner() for name, interpreter in interpreters.items()}


def draw(functions, tokens, negative_tokens, latents, table, noise, guidance):
    """Runs the loop as an app for phones does, for a sampler that adds no noise."""
    negative, positive = (functions["text_encoder"](tokens=x)["context"] for x in (negative_tokens, tokens))
    history = np.zeros((5, *latents.shape), "float32")
    for t, p, q, a, _, *b in table:
        seen = {"latents": latents, "timestep": t[None]}
        away, towards = (functions["diffusion_model"](**seen, context=x)["prediction"] for x in (negative, positive))
        prediction = away + guidance * (towards - away)
        history = np.concatenate([(p * latents + q * prediction)[None], history[:-1]])
        latents = a * latents + np.tensordot(np.stack(b), history, 1)
    return functions["decoder"](latents=latents)["images"]


def test_it_draws_the_same(tmp_path):
    keras.utils.set_random_seed(0)
    model = StableDiffusion(16, 12, preset=SMALL)
    model.export(tmp_path / "model", "litert")
    functions, call = (
        load(tmp_path / "model", *litert.FUNCTIONS),
        {"num_steps": 3, "unconditional_guidance_scale": 3.0, "seed": 5},
    )
    images = draw(functions, **export_inputs(tmp_path / "model", "a cat", "blue", **call))
    live = model.text_to_image("a cat", "blue", **call, verbose=0)
    assert live.std() > 10
    np.testing.assert_allclose(images, live.astype(int), atol=1)
    latents = functions["image_encoder"](images=live)["latents"]
    np.testing.assert_allclose(latents, model.image_encoder(live / np.float32(127.5) - 1), atol=1e-5)


def test_weights_may_take_half_the_space(tmp_path, monkeypatch):
    model = StableDiffusion(16, 12, preset=SMALL)
    count, path = model.text_encoder.count_params(), tmp_path / "text_encoder.tflite"
    path.write_bytes(litert.convert(model.text_encoder, (16, 12), "float16"))
    assert path.stat().st_size < 3 * count
    tokens = np.arange(77, dtype="int32")[None]
    (context,) = load(tmp_path, "text_encoder")["text_encoder"](tokens=tokens).values()
    np.testing.assert_allclose(context, model.text_encoder([tokens, np.arange(77)[None]]), atol=0.01)
    monkeypatch.setattr(litert, "LARGEST", 3 * count + litert.GRAPH)
    with pytest.raises(ValueError, match=r"at most 2 GiB.*dtype='float16'"):
        model.export(tmp_path / "model", "litert")


def test_inputs_need_an_exported_folder(tmp_path):
    with pytest.raises(ValueError, match="must be what was exported"):
        export_inputs(tmp_path, "a cat")
