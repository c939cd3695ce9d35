"""The server with the bundled model: what it draws is what the library draws."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from keras_diffusion.checkpoints.layouts import controlnet_files, tiny_vae_files
from keras_diffusion.checkpoints.mapping import names
from keras_diffusion.images import metadata
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.tiny_autoencoder import TinyArchitecture, TinyDecoder
from keras_diffusion.serving.adapters import Adapters
from keras_diffusion.serving.app import make_app
from keras_diffusion.serving.calls import Limits
from keras_diffusion.serving.models import Models
from keras_diffusion.serving.security import Rules
from keras_diffusion.serving.service import Service, preview_png
from keras_diffusion.serving.store import Store
from keras_diffusion.serving.worker import Progress, Worker

from ..golden import networks

CALL = {"prompt": "a slice of pizza", "num_steps": 2, "seed": 4}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    folders = [folder / name for name in ("loras", "words", "controlnets")]
    for each in folders:
        each.mkdir()
    models = Models({"emoji": "emoji"}, Adapters(*folders), "float32", False)
    worker = Worker(Store(folder / "jobs", 100), models, [folder])
    service = Service(worker.store, worker, models._adapters, Limits(), "emoji")
    client = TestClient(make_app(service, Rules()), base_url="http://localhost")
    client.folder, client.models = folder, models
    worker.start()
    yield client
    worker.stop()
    worker.store.close()


def draw(client, **fields):
    """Draws a job, and returns its images, uint8 (b, h, w, 3), and the file of the first."""
    id = client.post("/v1/jobs", json={**CALL, **fields}).json()["id"]
    with client.stream("GET", f"/v1/jobs/{id}/events") as answer:
        job = json.loads([line for line in answer.iter_lines() if line][-1].removeprefix("data: "))
    assert job["state"] == "done", job
    files = [client.get(path).content for path in job["images"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]), files[0]


def test_what_it_draws_is_what_the_library_draws(client):
    drawn, file = draw(client, batch_size=1)
    model = client.models._models["emoji"]
    np.testing.assert_array_equal(drawn, model.text_to_image(**CALL, verbose=0))
    settings = metadata.read(file)
    assert (settings["Model"], settings["Sampler settings"]) == ("emoji", "model")
    np.testing.assert_array_equal(drawn, model.text_to_image(**metadata.call_arguments(settings), verbose=0))
    image = {"image": base64.b64encode(file).decode(), "strength": 0.5, "num_steps": 4}
    again, file = draw(client, task="image_to_image", **image)
    expected = model.image_to_image(drawn, strength=0.5, **CALL | {"num_steps": 4}, verbose=0)
    np.testing.assert_array_equal(again, expected)
    assert metadata.read(file)["Denoising strength"] == "0.5"


def test_loras_and_embeddings_are_those_of_the_job_alone(client):
    plain, _ = draw(client)
    model = client.models._models["emoji"]
    layer = next(
        row for row in names.diffusion_model(model.architecture) if row.diffusers.endswith("attn1.to_q.weight")
    )
    side = next(v.shape[0] for v in model.diffusion_model.variables if v.path == layer.path)
    name = "lora_unet_" + layer.diffusers.removesuffix(".weight").replace(".", "_")
    down, up = networks.uniform("down", (1, side)), networks.uniform("up", (side, 1))
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(lora, client.folder / "loras" / "style.safetensors")
    word = networks.uniform("word", (2, model.architecture.text_encoder.width))
    save_file({"emb_params": word}, client.folder / "words" / "zorgle.safetensors")
    styled, file = draw(client, loras=[{"name": "style", "scale": 8.0}])
    assert (styled != plain).any()
    assert json.loads(metadata.read(file)["LoRAs"]) == [{"name": "style", "scale": 8.0}]
    tagged, _ = draw(client, prompt=f"{CALL['prompt']}<lora:style:8>", prompt_weighting=True)
    np.testing.assert_array_equal(tagged, styled)
    np.testing.assert_array_equal(draw(client)[0], plain)
    draw(client, prompt="a zorgle")
    assert "zorgle" in model.tokenizer.added_tokens
    np.testing.assert_array_equal(draw(client)[0], plain)


def test_controlnets_steer_by_name(client):
    plain, file = draw(client)
    model = client.models._models["emoji"]
    network = ControlNet(architecture=model.architecture, conditioning=(8, 8, 8))
    for variable in network.trainable_variables:
        variable.assign(networks.uniform(variable.path, variable.shape) / 4)
    path = client.folder / "controlnets" / "edges"
    controlnet_files.save(path, network)
    unit = {"name": "edges", "image": base64.b64encode(file).decode(), "scale": 0.5, "end": 0.5}
    steered, file = draw(client, controls=[unit])
    control = model.load_controlnet(path), plain, 0.5, 0.0, 0.5
    np.testing.assert_array_equal(steered, model.text_to_image(**CALL, control=control, verbose=0))
    assert (steered != plain).any()
    row = {"name": "edges", "scale": 0.5, "start": 0.0, "end": 0.5, "resize": "stretch"}
    assert json.loads(metadata.read(file)["ControlNets"]) == [row]
    answer = client.post("/v1/jobs", json={**CALL, "controls": [row]})
    assert answer.json()["error"]["message"] == "Each of `controls` needs an `image` in base64."


def test_a_prompt_that_is_too_long_fails_and_says_so(client):
    answer = client.post("/v1/images/generations", json={"prompt": "x " * 100})
    assert (answer.status_code, "tokens" in answer.json()["error"]["message"]) == (400, True)


def test_memory_is_freed_and_the_model_comes_back(client):
    plain, _ = draw(client)
    client.post("/sdapi/v1/unload-checkpoint")
    np.testing.assert_array_equal(draw(client)[0], plain)


def test_one_model_is_in_memory_at_a_time(monkeypatch):
    events = []

    class Model:
        def __init__(self, preset, **options):
            self.preset = preset
            events.append(("made", preset))

        def unload(self, discard):
            events.append(("unloaded", self.preset))

    monkeypatch.setattr("keras_diffusion.StableDiffusion", Model)
    models = Models({"a": "x", "b": "y"}, Adapters())
    for name in "aaba":
        models._use(name)
        assert models.loaded == name
    assert events == [("made", "x"), ("unloaded", "x"), ("made", "y"), ("unloaded", "y")]  # x loads itself again


def test_a_tiny_decoder_draws_previews_where_it_fits(tmp_path, caplog):
    for name, shape in {"fits": TinyArchitecture((1, 0, 0), channels=4), "other": TinyArchitecture((1, 0))}.items():
        tiny_vae_files.save(tmp_path / f"{name}.safetensors", tiny_decoder=TinyDecoder(architecture=shape))
        models = Models({"emoji": "emoji"}, Adapters(), tiny_vae=tmp_path / f"{name}.safetensors")
        models._use("emoji")
        size = 64 if name == "fits" else 16
        assert models.preview(np.zeros((1, 16, 16, 4), "float32")).shape == (1, size, size, 3)
    assert len(caplog.messages) == 1
    assert "pixels per latent 2, not 4" in caplog.text


@pytest.mark.parametrize(
    ("side", "of_latents", "expected"), [(64, 64, 512), (512, 64, 512), (256, 256, 2048), (64, 16, 64)]
)
def test_a_preview_is_enlarged_only_where_it_has_the_size_of_latents(side, of_latents, expected):
    """Also where the latents of a large image are larger than a small image."""
    latents = np.zeros((2, of_latents, of_latents, 4), "float32")
    progress = Progress("id", 1, 2, 0.0, latents, np.zeros((2, side, side, 3), "uint8"))
    assert Image.open(io.BytesIO(preview_png(progress, scale=8))).size == (2 * expected, expected)
