"""OpenAI's interface for images, on models that draw nothing."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from keras_diffusion.images import job_settings, metadata


def file(width=64, height=64, mode="RGB", colour=0):
    content = io.BytesIO()
    Image.new(mode, (width, height), colour).save(content, "PNG")
    return ("image.png", content.getvalue(), "image/png")


def holed():
    """A PNG that is transparent on its left half."""
    pixels = np.full((64, 64, 4), 255, "uint8")
    pixels[:, :32, 3] = 0
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return ("mask.png", content.getvalue(), "image/png")


def generate(client, **fields):
    answer = client.post("/v1/images/generations", json={"prompt": "a cat", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_generations_are_in_base64(client):
    answer = generate(client, n=2, size="72x64", model="other", seed=3)
    assert [row["revised_prompt"] for row in answer["data"]] == ["a cat"] * 2
    content = base64.b64decode(answer["data"][1]["b64_json"])
    assert Image.open(io.BytesIO(content)).size == (72, 64)
    assert metadata.read(content)["Seed"] == "4"
    assert (answer["size"], answer["output_format"], client.models.drawn[0][0].model) == ("72x64", "png", "other")


@pytest.mark.parametrize(("quality", "steps"), [("low", 2), ("auto", 4), ("hd", 8)])
def test_quality_is_a_number_of_steps(client, quality, steps):
    generate(client, quality=quality, size="auto")
    assert client.models.drawn[0][0].arguments["num_steps"] == steps


def test_an_address_leads_to_the_image(client):
    url = generate(client, response_format="url")["data"][0]["url"]
    assert url.startswith("http://localhost:7860/v1/jobs/")
    assert client.get(url).headers["content-type"] == "image/png"


@pytest.mark.parametrize(("format", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats_have_settings_inside_too(client, format, kind):
    row = generate(client, output_format=format, output_compression=50)["data"][0]
    content = base64.b64decode(row["b64_json"])
    assert Image.open(io.BytesIO(content)).format == kind
    assert metadata.read(content)["Prompt"] == "a cat"
    noise = job_settings.png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8"), None)
    assert len(job_settings.convert(noise, kind, 10)) < len(job_settings.convert(noise, kind, 90))


WRONG = {
    "prompt": None,
    "n": 0,
    "size": "1000",
    "quality": "best",
    "model": "dall-e-3",
    "output_format": "gif",
    "output_compression": 101,
    "background": "transparent",
    "stream": "yes",
    "partial_images": 4,
    "unheard_of": 1,
    "img_width": 64,
    "num_steps": 1000,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(client, name):
    answer = client.post("/v1/images/generations", json={"prompt": "a cat", name: WRONG[name]})
    param = {"n": "batch_size"}.get(name, name)
    assert (400 <= answer.status_code < 500, answer.json()["error"]["param"]) == (True, param)


def events(answer):
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_a_stream_has_partial_images(client):
    client.models.pause = 0.15  # seconds of a step: longer than between two looks
    found = events(client.post("/v1/images/generations", json={"prompt": "x", "stream": True, "partial_images": 2}))
    assert [name for name, _ in found] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    for name, data in found:
        assert data["type"] == name
        assert Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))).size == (64, 64)
    assert [data["partial_image_index"] for _, data in found[:2]] == [0, 1]


def test_a_stream_ends_with_an_error(client):
    client.models.error = ValueError("`prompt` is too long.")
    [(name, data)] = events(client.post("/v1/images/generations", json={"prompt": "x", "stream": True}))
    assert (name, data["error"]["message"]) == ("error", "`prompt` is too long.")


def test_edits_repaint_what_is_transparent(client):
    for files in ({"image": file(), "mask": holed()}, {"image[]": holed()}):
        answer = client.post("/v1/images/edits", files=files, data={"prompt": "a dog", "n": "2", "seed": "5"})
        assert len(answer.json()["data"]) == 2
        job, inputs = client.models.drawn[-1]
        assert (job.task, job.arguments["mask_white"], job.arguments["seed"]) == ("inpaint", "keep", 5)
        assert inputs["mask"] == [holed()[1]]
        assert answer.json()["size"] == "64x64"
    answer = client.post("/v1/images/edits", files={"image": file(48)}, data={"prompt": "a dog", "strength": "0.5"})
    assert answer.json()["size"] == "48x64"
    job, inputs = client.models.drawn[-1]
    assert (job.task, job.arguments["strength"], [*inputs]) == ("image_to_image", 0.5, ["image"])


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"mask": holed()},
        {"image": file(), "mask": file()},
        {"image": ("x.png", b"no image", "image/png")},
        [("image[]", file()), ("image[]", file())],
        {"image": file(), "n": file()},
        {"image": file(), "mask": ("x.png", b"no image", "image/png")},
    ],
)
def test_edits_of_nothing_are_refused(client, files):
    files = files or {"other": file()}
    answer = client.post("/v1/images/edits", files=files, data={"prompt": "a dog"})
    assert 400 <= answer.status_code < 500, answer.text


def test_models_are_listed(client):
    listed = client.get("/v1/models").json()
    assert (listed["object"], [row["id"] for row in listed["data"]]) == ("list", ["emoji", "other"])
    assert client.get("/v1/models/other").json() == listed["data"][1]
    assert client.get("/v1/models/../nothing").status_code == 404


def test_requests_of_open_webui(client):
    """As its engine "openai" sends them (routers/images.py)."""
    headers = {"Authorization": "Bearer any"}
    fields = {"model": "emoji", "prompt": "a cat", "n": 1, "size": "64x64", "response_format": "b64_json"}
    made = client.post("/v1/images/generations", json=fields, headers=headers).json()["data"]
    content = base64.b64decode(made[0]["b64_json"])
    form = {name: str(value) for name, value in fields.items()}
    files = {"image": ("image.png", content, "image/png")}
    edited = client.post("/v1/images/edits?api-version=1", data=form, files=files, headers=headers).json()["data"]
    assert Image.open(io.BytesIO(base64.b64decode(edited[0]["b64_json"]))).size == (64, 64)
