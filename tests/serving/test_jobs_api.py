"""The server's own interface, on models that draw nothing."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from keras_diffusion.errors import NumericalError
from keras_diffusion.images import metadata
from keras_diffusion.serving.calls import Limits
from keras_diffusion.serving.store import Store


def png(width=64, height=64, colour=(255, 0, 0), **options):
    content = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(content, "PNG", **options)
    return content.getvalue()


def in_base64(content):
    return base64.b64encode(content).decode()


def test_a_job_is_drawn_with_its_settings_inside(client):
    job = client.draw(batch_size=2, seed=5, sampler="Euler a", spacing="karras", guidance_rescale=0.5, img_width=72)
    assert (job["state"], job["step"], job["num_steps"], job["place"]) == ("done", 4, 4, None)
    assert job["images"] == [f"/v1/jobs/{job['id']}/images/{i}.png" for i in range(2)]
    answer = client.get(job["images"][1])
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (72, 64)
    read = client.post("/v1/read-settings", content=answer.content, headers={"Content-Type": "image/png"}).json()
    expected = {"prompt": "a cat", "seed": 6, "sampler": "euler_ancestral", "spacing": "karras", "num_steps": 4}
    expected |= {"guidance_rescale": 0.5, "img_width": 72, "img_height": 64, "unconditional_guidance_scale": 2.0}
    assert expected.items() <= read["arguments"].items()
    assert read["text"].startswith("a cat\n")
    again = client.draw(**read["arguments"])
    assert client.get(again["images"][0]).status_code == 200


def test_other_methods_are_told(client):
    answer = client.put("/health")
    assert (answer.status_code, sorted(answer.headers["allow"].split(", "))) == (405, ["GET", "HEAD"])


def test_a_seed_is_drawn_when_the_job_is_handed_in(client):
    seeds = {client.draw(wait=False)["arguments"]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_jobs_wait_in_order_and_are_cancelled(client):
    client.models.go.clear()
    first, second, third = (client.draw(wait=False) for _ in range(3))
    client.until(first["id"], lambda job: job["state"] == "running")
    assert [client.get(f"/v1/jobs/{job['id']}").json()["place"] for job in (first, second, third)] == [0, 1, 2]
    assert client.post(f"/v1/jobs/{second['id']}/cancel").json()["state"] == "cancelled"
    assert client.get(f"/v1/jobs/{third['id']}").json()["place"] == 1
    client.post(f"/v1/jobs/{first['id']}/cancel")
    client.models.go.set()
    assert client.until(first["id"], lambda job: job["finished"])["state"] == "cancelled"
    assert client.until(third["id"], lambda job: job["finished"])["state"] == "done"
    assert [job.id for job, _ in client.models.drawn] == [first["id"], third["id"]]
    listed = client.get("/v1/jobs", params={"limit": 2}).json()["jobs"]
    assert [job["id"] for job in listed] == [third["id"], second["id"]]
    before = client.get("/v1/jobs", params={"before": second["id"]}).json()["jobs"]
    assert [job["id"] for job in before] == [first["id"]]


def test_a_running_job_is_cancelled_after_its_step(client):
    client.models.go.clear()
    job = client.draw(wait=False, num_steps=150)
    client.until(job["id"], lambda job: job["state"] == "running")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    client.models.go.set()
    assert client.until(job["id"], lambda job: job["finished"])["state"] == "cancelled"


def test_events_end_with_the_job(client):
    client.models.go.clear()
    job = client.draw(wait=False)
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        client.models.go.set()
        lines = [line for line in answer.iter_lines() if line]
    assert set(lines[::2]) == {"event: job"}
    states = [json.loads(line.removeprefix("data: "))["state"] for line in lines[1::2]]
    assert states[-1] == "done"


def test_a_preview_is_there_while_a_job_runs(client):
    client.models.go.clear()
    job = client.draw(wait=False, num_steps=2)
    assert client.get(f"/v1/jobs/{job['id']}/preview.png").status_code == 404
    seen = []
    client.models.preview = lambda latents: (
        seen.append(1) or client.models.go.clear() or np.full((1, 8, 8, 3), 9, "uint8")
    )
    client.models.go.set()
    running = client.until(job["id"], lambda job: job["preview"])
    content = client.get(running["preview"]).content
    assert np.asarray(Image.open(io.BytesIO(content))).tolist() == np.full((8, 8, 3), 9).tolist()
    assert running["step"] == 1
    client.models.go.set()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_image_to_image_and_inpaint_get_their_images(client, kind):
    content = io.BytesIO()
    Image.new("RGB", (48, 32)).save(content, kind)
    given = {
        "image": f"data:image/{kind.lower()};base64,{in_base64(content.getvalue())}",
        "img_width": 64,
        "strength": 0.5,
    }
    job = client.draw(task="image_to_image", **given)
    assert (job["state"], job["num_steps"], "image" in job["arguments"]) == ("done", 2, False)
    mask = png(48, 32)
    client.draw(task="inpaint", mask=in_base64(mask), **given)
    assert client.models.drawn[-1][1] == {"image": [content.getvalue()], "mask": [mask]}


WRONG = {
    "no prompt": ({"prompt": None}, "prompt"),
    "prompt of another type": ({"prompt": 3}, "prompt"),
    "unknown argument": ({"callback": "os.system"}, "callback"),
    "path as image": ({"task": "image_to_image", "image": "/etc/passwd"}, "image"),
    "URL as image": ({"task": "image_to_image", "image": "http://169.254.169.254/"}, "image"),
    "no image": ({"task": "image_to_image"}, "image"),
    "no mask": ({"task": "inpaint", "image": in_base64(png())}, "mask"),
    "image for text_to_image": ({"image": in_base64(png())}, "image"),
    "broken image": ({"task": "image_to_image", "image": in_base64(png()[:60])}, "image"),
    "image of a wrong size": ({"task": "image_to_image", "image": in_base64(png(60, 64))}, "img_width"),
    "task": ({"task": "__class__"}, "task"),
    "model": ({"model": "../emoji"}, "model"),
    "model of another type": ({"model": ["emoji"]}, "model"),
    "steps": ({"num_steps": 151}, "num_steps"),
    "size": ({"img_width": 65}, "img_width"),
    "side": ({"img_height": 4096}, "img_height"),
    "batch": ({"batch_size": 17}, "batch_size"),
    "pixels": ({"img_width": 1024, "img_height": 1024, "batch_size": 16}, "batch_size"),
    "sampler": ({"sampler": "nope"}, "sampler"),
    "spacing": ({"spacing": "nope"}, "spacing"),
    "boolean": ({"karras": 1}, "karras"),
    "huge number": ({"unconditional_guidance_scale": 10**400}, "unconditional_guidance_scale"),
    "negative seed": ({"seed": -1}, "seed"),
    "LoRA that is not there": ({"loras": [{"name": "nope"}]}, "loras"),
    "LoRA by its path": ({"loras": [{"name": "../secret"}]}, "loras"),
    "LoRA of another type": ({"loras": {"name": "x"}}, "loras"),
    "strength without an image": ({"strength": 0.5}, "strength"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(client, case):
    fields, param = WRONG[case]
    answer = client.post("/v1/jobs", json={"prompt": "a cat", **fields})
    error = answer.json()["error"]
    assert (400 <= answer.status_code < 500, error["param"]) == (True, param), error
    assert "Received" in error["message"] or "needs" in error["message"] or "too large" in error["message"]
    assert client.get("/v1/jobs").json() == {"jobs": []}


FAILURES = [
    (ValueError("`prompt` is too long."), "`prompt` is too long."),
    (NumericalError("not finite"), "not finite"),
    (RuntimeError("a secret"), "The server has a defect (RuntimeError); its log says where."),
]


@pytest.mark.parametrize(("error", "message"), FAILURES)
def test_a_job_that_fails_says_why(client, error, message, caplog):
    client.models.error = error
    job = client.draw()
    assert (job["state"], job["error"]) == ("failed", message)
    assert "secret" not in caplog.text
    assert client.draw()["state"] == "done"


def test_paths_are_not_told(client, tmp_path):
    client.models.error = OSError(f"No room in {tmp_path}/jobs/x")
    assert client.draw()["error"] == "No room in jobs/x"


def test_the_queue_has_an_end(start):
    client = start(Limits(max_queue=2))
    client.models.go.clear()
    running = client.draw(wait=False)
    client.until(running["id"], lambda job: job["state"] == "running")
    for _ in range(2):
        client.draw(wait=False)
    answer = client.post("/v1/jobs", json={"prompt": "a cat"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")


def test_old_jobs_make_room(start, tmp_path):
    client = start(keep=2)
    jobs = [client.draw() for _ in range(4)]
    assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [jobs[3]["id"], jobs[2]["id"]]
    assert {path.name for path in (tmp_path / "jobs" / "files").iterdir()} == {jobs[3]["id"], jobs[2]["id"]}


def test_a_job_is_deleted_with_its_files(client, tmp_path):
    job = client.draw()
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert client.get(job["images"][0]).status_code == 404
    assert not [*(tmp_path / "jobs" / "files").iterdir()]


def test_options_say_what_there_is(start, tmp_path):
    for folder, name in (("loras", "style.safetensors"), ("loras/old", "style.pt"), ("loras", "line.safetensors")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    client = start(loras=tmp_path / "loras", embeddings=tmp_path / "loras")
    found = client.get("/v1/options").json()
    assert [model["name"] for model in found["models"]] == ["emoji", "other"]
    assert found["models"][0]["defaults"]["num_steps"] == 4
    assert found["loras"] == found["embeddings"] == ["line"]  # two files of one name are none
    job = client.draw(loras=[{"name": "line", "scale": 0.5}])
    content = client.get(job["images"][0]).content
    read = client.post("/v1/read-settings", content=content, headers={"Content-Type": "image/png"}).json()
    assert read["arguments"]["loras"] == [{"name": "line", "scale": 0.5}]


def test_an_image_without_settings_is_said_to_have_none(client):
    answer = client.post("/v1/read-settings", content=png(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_settings")
    content = io.BytesIO()
    metadata.write(
        content, np.zeros((8, 8, 3), "uint8"), {"Prompt": "x", "Steps": "many", "Sampler": "Euler", "Seed": "1"}, "WEBP"
    )
    answer = client.post("/v1/read-settings", content=content.getvalue(), headers={"Content-Type": "image/webp"})
    assert (answer.status_code, "Steps" in answer.json()["error"]["message"]) == (422, True)


def test_health_and_metrics(client):
    client.draw(batch_size=3)
    assert client.get("/health").json() == {"status": "ok", "ready": True}
    lines = client.get("/metrics").text.splitlines()
    assert {'keras_diffusion_jobs{state="done"} 1', "keras_diffusion_images_total 3"} <= set(lines)


def test_models_that_cannot_be_read_are_told(start, monkeypatch):
    client = start()
    client.service.worker.failure = "damaged"
    assert client.get("/health").status_code == 503
    assert client.post("/v1/jobs", json={"prompt": "x"}).status_code == 503


def test_what_was_not_finished_is_drawn_after_a_restart(start, tmp_path):
    store = Store(tmp_path / "jobs", 10)
    jobs = [
        store.add("text_to_image", "emoji", {"prompt": "x", "num_steps": 1, "seed": 1, "batch_size": 1}, {})
        for _ in "ab"
    ]
    assert store.take().id == jobs[0].id  # and then the server is killed
    store.close()
    client = start()
    ended = [client.until(job.id, lambda job: job["finished"]) for job in jobs]
    assert [job["state"] for job in ended] == ["done", "done"]
    assert [job.id for job, _ in client.models.drawn] == [job.id for job in jobs]


def test_a_folder_has_one_server(start, tmp_path):
    start()
    with pytest.raises(ValueError, match="Another server uses this folder"):
        Store(tmp_path / "jobs", 10)
