import json

import keras
import numpy as np
import pytest

from keras_diffusion.exporting.onnx_layers import lower

from ..small import SMALL
from .networks import PARTS, cases, make_model, require_same

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model"
    model.export(path, "onnx")
    return path


def run(path, **inputs):
    (output,) = runtime.InferenceSession(path).run(None, inputs)
    return output


@pytest.mark.backend
def test_every_backend_writes_its_weights(model, folder):
    tokens = model.tokenizer.tokenize("a cat", pad_token=49407).astype("int64")
    context = run(folder / "text_encoder" / "model.onnx", input_ids=tokens)
    np.testing.assert_allclose(context, model.encode_text("a cat"), rtol=1e-4, atol=1e-4)
    latents = np.random.default_rng(0).normal(size=(1, 4, 6, 4)).astype("float32")
    scaled = latents.transpose(0, 3, 1, 2) / SMALL.autoencoder.scaling_factor
    images = run(folder / "vae_decoder" / "model.onnx", latent_sample=scaled).transpose(0, 2, 3, 1)
    images = ((images + 1) * 127.5).clip(0, 255)
    assert images.std() > 10
    np.testing.assert_allclose(images, model.decode(latents), atol=1)


def test_each_network_gives_the_same(model, folder):
    for part, inputs, live in cases(model, timestep=np.array(500.5, "float32")):
        require_same(part, run(folder / part / "model.onnx", **inputs), live)


def test_the_files_are_those_that_optimum_loads(folder):
    graphs = {part: onnx.load(folder / part / "model.onnx").graph for part in PARTS}
    names = {part: [x.name for x in (*graph.input, *graph.output)] for part, graph in graphs.items()}
    assert names == {
        "text_encoder": ["input_ids", "last_hidden_state"],
        "unet": ["sample", "timestep", "encoder_hidden_states", "out_sample"],
        "vae_decoder": ["latent_sample", "sample"],
        "vae_encoder": ["sample", "latent_parameters"],
    }
    for part in PARTS:
        onnx.checker.check_model(folder / part / "model.onnx", full_check=True)
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in PARTS}
    assert configs["unet"]["time_cond_proj_dim"] is None
    assert configs["vae_decoder"]["scaling_factor"] == SMALL.autoencoder.scaling_factor
    assert {path.name for path in folder.iterdir()} == {*PARTS, "scheduler", "tokenizer", "model_index.json"}


def test_large_weights_lie_beside_the_graph(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_diffusion.exporting.onnx_graph.WITHIN", 0)
    model.export(tmp_path / "model", "onnx")
    tokens, paths = (
        np.zeros((1, 77), "int64"),
        [path / "text_encoder" / "model.onnx" for path in (tmp_path / "model", folder)],
    )
    outside, inside = (run(path, input_ids=tokens) for path in paths)
    np.testing.assert_array_equal(outside, inside)
    assert paths[0].stat().st_size < paths[1].stat().st_size / 2


def test_a_network_of_others_is_refused(model, tmp_path, monkeypatch):
    latents = keras.Input((None, None, 4))
    monkeypatch.setattr(model, "decoder", keras.Model(latents, keras.layers.ReLU()(latents)))
    with pytest.raises(TypeError, match="decoder=Functional"):
        model.export(tmp_path / "model", "onnx")
    with pytest.raises(TypeError, match=r"'own'.*ReLU"):
        lower(None, keras.layers.ReLU(name="own"), None)
    assert not (tmp_path / "model").exists()
