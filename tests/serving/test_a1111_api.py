"""A1111's interface, on models that draw nothing."""

import base64
import io
import json
import threading

import pytest
from PIL import Image

from keras_diffusion.serving.a1111_fields import WITHOUT_EFFECT
from keras_diffusion.serving.security import Rules

LISTS = "hypernetworks face-restorers prompt-styles sd-vae latent-upscale-modes script-info extensions loras".split()


def image(width=64, height=64, **options):
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def post(client, path, **fields):
    answer = client.post(f"/sdapi/v1/{path}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sizes(images):
    return [Image.open(io.BytesIO(base64.b64decode(image, validate=True))).size for image in images]


def test_txt2img_draws_batches_with_their_seeds(client):
    fields = {"prompt": "a (cat:1.2)", "steps": 3, "cfg_scale": 5, "seed": 10, "width": 64, "height": 72}
    answer = post(client, "txt2img", batch_size=2, n_iter=2, sampler_name="Euler a", scheduler="Karras", **fields)
    assert sizes(answer["images"]) == [(64, 72)] * 4
    info = json.loads(answer["info"])
    assert (info["seed"], info["all_seeds"]) == (10, [10, 11, 12, 13])
    assert "Sampler: Euler a Karras, CFG scale: 5.0, Seed: 13" in info["infotexts"][3]
    assert "Emphasis: Original, Long prompts: chunk" in info["infotexts"][0]
    read = post(client, "png-info", image=answer["images"][1])
    assert (read["info"], read["parameters"]["Seed"]) == (info["infotexts"][1], "11")
    call = client.models.drawn[0][0].arguments
    expected = {"sampler": "euler_ancestral", "spacing": "karras", "prompt_weighting": True, "long_prompts": "chunk"}
    assert expected.items() <= call.items()
    assert "eta" not in call


@pytest.mark.parametrize(
    ("sampler", "followed"), [("Euler a", True), ("DDIM", True), ("Euler", False), ("UniPC", False)]
)
def test_eta_is_that_of_samplers_that_take_it_in_a1111(client, sampler, followed):
    post(client, "txt2img", sampler_name=sampler, scheduler="automatic", eta=0.5)
    assert ("eta" in client.models.drawn[0][0].arguments) == followed


def test_img2img_and_masks(client):
    post(client, "img2img", init_images=[image()], denoising_strength=0.5, width=128, height=128)
    job, inputs = client.models.drawn[-1]
    assert (job.task, job.arguments["strength"], job.arguments["img_width"], [*inputs]) == (
        ("image_to_image", 0.5, 128, ["image"])
    )
    answer = post(client, "img2img", init_images=[image()], mask=image(), inpainting_mask_invert=1, mask_blur=4)
    job, inputs = client.models.drawn[-1]
    assert (job.task, job.arguments["mask_white"], [*inputs]) == ("inpaint", "keep", ["image", "mask"])
    assert json.loads(answer["info"])["not_followed"] == ["mask_blur"]


def test_the_hires_fix_draws_twice(client):
    fields = {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 2, "denoising_strength": 0.5}
    answer = post(client, "txt2img", steps=4, seed=3, batch_size=2, **fields)
    assert sizes(answer["images"]) == [(96, 96)] * 2
    (first, _), (second, inputs) = client.models.drawn
    assert (first.task, second.task, len(inputs["image"])) == ("text_to_image", "image_to_image", 2)
    assert (second.arguments["seed"], second.arguments["num_steps"], second.arguments["strength"]) == (3, 2, 0.5)


def test_variations_of_a_seed_are_followed(client):
    fields = {"seed": 3, "subseed": 20, "subseed_strength": 0.25, "seed_resize_from_h": 64, "seed_resize_from_w": 72}
    answer = post(client, "txt2img", steps=2, batch_size=2, n_iter=2, **fields)
    info = json.loads(answer["info"])
    assert (info["all_seeds"], info["all_subseeds"]) == ([3] * 4, [20, 21, 22, 23])
    assert {name: info[name] for name in fields} == fields
    assert "Variation seed: 23, Variation seed strength: 0.25, Seed resize from: 72x64" in info["infotexts"][3]
    _, (second, _) = client.models.drawn
    assert (second.arguments["variation_seed"], second.arguments["seed_resize_from"]) == (22, [64, 72])


REFUSED = {
    **dict.fromkeys(("tiling", "restore_faces"), True),
    **dict.fromkeys(("s_churn", "s_noise", "subseed_strength", "resize_mode"), 5),
    **dict.fromkeys(("styles", "script_name", "refiner_checkpoint", "infotext", "sampler_name"), "x"),
    "alwayson_scripts": {"ADetailer": {"args": [True]}},
    "override_settings": {"sd_vae": "other"},
    "n_iter": 1000,
    "seed": "x",
    "steps": 1000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(client, name):
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "x", name: REFUSED[name]})
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert not client.models.drawn


def test_values_without_effect_pass(client):
    fields = {name: values[0] for name, values in WITHOUT_EFFECT.items() if values}
    fields |= {"alwayson_scripts": {"ADetailer": {"args": [False]}}, "script_args": [], "styles": [], "unheard_of": 1}
    answer = post(client, "txt2img", prompt="x", override_settings={"samples_format": "png"}, **fields)
    assert json.loads(answer["info"])["not_followed"] == ["unheard_of"]


@pytest.mark.parametrize("name", ["other", "other.safetensors", "other [0123456789]"])
def test_models_are_chosen_by_name(client, name):
    post(client, "txt2img", override_settings={"sd_model_checkpoint": name, "CLIP_stop_at_last_layers": 2})
    job = client.models.drawn[-1][0]
    assert (job.model, job.arguments["clip_skip"]) == ("other", 1)
    options = client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == "emoji"
    assert (
        client.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": name, "filter": 1}).status_code == 200
    )
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "other"
    post(client, "txt2img")
    assert client.models.drawn[-1][0].model == "other"


@pytest.mark.parametrize(("how", "count"), [("interrupt", 1), ("skip", 3)])
def test_an_interrupted_request_answers_with_what_there_is(client, how, count):
    client.models.go.clear()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(post(client, "txt2img", steps=100, n_iter=3)))
    thread.start()
    client.wait_for(
        "/v1/jobs", lambda found: [job["state"] for job in found["jobs"]] == ["queued", "queued", "running"]
    )
    progress = client.get("/sdapi/v1/progress").json()
    assert (progress["progress"], progress["state"]["sampling_steps"], progress["state"]["job_count"]) == (0, 100, 3)
    assert post(client, how) == {}
    client.models.go.set()
    thread.join()
    assert len(answers[0]["images"]) == count


def test_progress_of_nothing(client):
    progress = client.get("/sdapi/v1/progress", params={"skip_current_image": "true"}).json()
    assert (progress["progress"], progress["eta_relative"], progress["current_image"]) == (0, 0, None)
    assert progress["state"]["job_count"] == 0


def test_lists_are_there(start, tmp_path):
    (tmp_path / "style.safetensors").touch()
    client = start(loras=tmp_path, embeddings=tmp_path)
    get = {name: client.get(f"/sdapi/v1/{name}").json() for name in LISTS}
    assert get.pop("loras") == [{"name": "style", "alias": "style", "path": "style.safetensors", "metadata": {}}]
    assert set(map(str, get.values())) == {"[]"}
    assert client.get("/sdapi/v1/embeddings").json() == {"loaded": {}, "skipped": {"style": {}}}
    assert client.get("/sdapi/v1/scripts").json() == {"txt2img": [], "img2img": []}
    assert [row["title"] for row in client.get("/sdapi/v1/sd-models").json()] == ["emoji", "other"]
    samplers = {row["name"]: row["aliases"] for row in client.get("/sdapi/v1/samplers").json()}
    assert "dpmpp_2m" in samplers["DPM++ 2M"]
    for row in client.get("/sdapi/v1/schedulers").json():
        post(client, "txt2img", sampler_name="Euler", scheduler=row["name"], steps=1)
    assert client.get("/sdapi/v1/memory").json()["ram"]["used"] > 0
    for name in ("refresh-checkpoints", "unload-checkpoint", "reload-checkpoint"):
        assert client.post(f"/sdapi/v1/{name}").status_code == 200
    assert client.post("/sdapi/v1/interrogate", json={"image": image()}).status_code == 404


def test_extras_enlarge(client):
    one = post(client, "extra-single-image", image=image(40, 20), upscaler_1="Lanczos", upscaling_resize=2)
    assert sizes([one["image"]]) == [(80, 40)]
    rows = [{"data": image(40, 20), "name": "a"}] * 2
    two = post(client, "extra-batch-images", imageList=rows, upscaler_1="Nearest", resize_mode=1, upscaling_resize_w=30,
               upscaling_resize_h=30)  # fmt: skip
    assert sizes(two["images"]) == [(30, 30)] * 2
    for wrong in (
        {"upscaler_1": "R-ESRGAN 4x+"},
        {"gfpgan_visibility": 1},
        {"upscaler_1": "Lanczos", "upscaling_resize": 99},
    ):
        assert 400 <= client.post("/sdapi/v1/extra-single-image", json={"image": image(), **wrong}).status_code < 500


def test_the_password_is_the_token(start):
    client = start(rules=Rules(token="a token of 24 characters"))
    assert client.get("/sdapi/v1/options").status_code == 401
    assert client.get("/sdapi/v1/options", auth=("user", "a token of 24 characters")).status_code == 200


def test_requests_of_open_webui(client):
    """As its engine "automatic1111" sends them (routers/images.py), without a password."""
    headers = {"authorization": ""}
    options = client.get("/sdapi/v1/options", headers=headers).json()
    listed = client.get("/sdapi/v1/sd-models", headers=headers).json()
    chosen = options | {"sd_model_checkpoint": listed[1]["title"]}
    assert client.post("/sdapi/v1/options", json=chosen, headers=headers).status_code == 200
    fields = {"prompt": "a cat", "batch_size": 1, "width": 64, "height": 64, "steps": 3, "negative_prompt": "dogs"}
    fields |= {"sampler_name": "Euler", "scheduler": "Karras", "cfg_scale": 4}
    answer = client.post("/sdapi/v1/txt2img", json=fields, headers=headers)
    assert sizes(answer.json()["images"]) == [(64, 64)]
    assert client.models.drawn[0][0].model == "other"


def test_requests_of_sillytavern(client):
    """As its extension stable-diffusion sends them through its server (source "auto")."""
    fields = {"url": "http://localhost:7860", "auth": "", "prompt": "a cat", "negative_prompt": "", "steps": 3}
    fields |= {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "cfg_scale": 7, "width": 64, "height": 64}
    fields |= {"restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1.5, "seed": -1}
    fields |= {"denoising_strength": 0.7, "hr_second_pass_steps": 0, "save_images": True, "send_images": True}
    fields |= {"do_not_save_grid": False, "do_not_save_samples": False, "clip_skip": 1}
    answer = post(client, "txt2img", override_settings={"CLIP_stop_at_last_layers": 1}, **fields)
    assert sizes(answer["images"]) == [(64, 64)]
    assert json.loads(answer["info"])["not_followed"] == ["auth", "clip_skip", "url"]
