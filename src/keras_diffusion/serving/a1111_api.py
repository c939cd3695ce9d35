"""The interface of AUTOMATIC1111's stable-diffusion-webui, /sdapi/v1/, as its clients call it.

Source: modules/api/api.py and models.py of its version 1.10. What there is not is an empty list here.
"""

import base64
import json
import logging
import re
import time
from datetime import datetime
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

from keras_diffusion.images import job_settings, metadata
from keras_diffusion.sampling.variation import seeds_alone
from keras_diffusion.serving import a1111_extras, a1111_fields, a1111_lists, calls, uploads
from keras_diffusion.serving.problems import Problem
from keras_diffusion.serving.service import preview_png
from keras_diffusion.serving.store import DONE

SETTINGS = {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "samples_format": "png"}  # at the start
HASH = re.compile(r"(\.safetensors|\.ckpt)?\s*(\[[0-9a-f]+\])?$")  # behind the name of a model

logger = logging.getLogger(__name__)


def settings(request):
    """Returns the settings of the server, a dict."""
    return {"sd_model_checkpoint": request.app.state.service.model, **request.app.state.a1111_settings}


async def draw(request, from_image):
    """POST txt2img and img2img."""
    service, body = request.app.state.service, await request.body()
    given = calls.read_json(body)
    plan = await run_in_threadpool(a1111_fields.translate, given, settings(request), from_image)
    if plan.not_followed:
        logger.warning("A1111's fields that were not followed: %.300s", ", ".join(map(ascii, plan.not_followed)))
    model, jobs, ended = model_name(plan.model), [], []
    try:
        for call in plan.rounds:
            jobs.append(await service.submit(plan.task, call, plan.inputs, model))
        for job in jobs:
            ended.append(await service.ended(job.id))
            if plan.hires and ended[-1].state == DONE:
                ended[-1] = await enlarge(service, ended[-1], plan.hires, plan.inputs)
            if stopped := request.app.state.a1111_interrupted & {job.id, ended[-1].id}:
                request.app.state.a1111_interrupted -= stopped
                break
    finally:
        for job in jobs[len(ended) :]:
            await run_in_threadpool(service.cancel, job)
    images = [image for job in ended for image in await run_in_threadpool(service.images, job)]
    echo = {name: value for name, value in given.items() if name not in ("init_images", "mask", "alwayson_scripts")}
    info = await run_in_threadpool(describe, ended, images, plan.not_followed)
    sent = [base64.b64encode(image).decode() for image in images] if plan.send_images else []
    return JSONResponse({"images": sent, "parameters": echo, "info": json.dumps(info)})


async def enlarge(service, job, hires, controls):
    """Draws the images of a job once more, larger, by the same images of ControlNets, and returns the job that did."""
    images = await run_in_threadpool(service.images, job)
    inputs = [await run_in_threadpool(uploads.read_image, "image", image) for image in images]
    (width, height), factor = inputs[0].size, (await service.describe(job.model)).size_multiple
    sides = {"img_width": width, "img_height": height}
    sides = {name: int(side * hires["scale"]) // factor * factor for name, side in sides.items()} | hires["sides"]
    call = {**job.arguments, **hires, **sides}
    del call["scale"], call["sides"]
    return await service.ended((await service.submit("image_to_image", call, inputs + controls, job.model)).id)


def model_name(title):
    """Returns the name of a model by a title, with or without a hash or a suffix; None stays None."""
    return HASH.sub("", title) if isinstance(title, str) else title


def describe(jobs, images, not_followed):
    """Returns what A1111's answers say about images, a dict."""
    call, first = jobs[0].arguments, jobs[0]
    texts = [job_settings.read_text(image) for image in images]
    read = metadata.from_text(texts[0]) if texts else {}
    drawn = [seeds_alone(job.arguments, i) for job in jobs for i in range(job.images)]
    seeds = [each["seed"] for each in drawn]
    others = [each.get("variation_seed", each["seed"]) for each in drawn]
    height_from, width_from = call.get("seed_resize_from", (-1, -1))
    width, height = uploads.read_image("image", images[0]).size if images else (0, 0)
    negative = call.get("negative_prompt", "")
    return {
        "prompt": call["prompt"],
        "all_prompts": [call["prompt"]] * len(images),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(images),
        "seed": call["seed"],
        "all_seeds": seeds,
        "subseed": call.get("variation_seed", call["seed"]),
        "all_subseeds": others,
        "subseed_strength": call.get("variation_strength", 0.0),
        "width": width,
        "height": height,
        "sampler_name": read.get("Sampler", ""),
        "cfg_scale": float(call.get("unconditional_guidance_scale", read.get("CFG scale", 0))),
        "steps": call["num_steps"],
        "batch_size": call["batch_size"],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model,
        "sd_model_hash": read.get("Model hash", ""),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": width_from,
        "seed_resize_from_h": height_from,
        "denoising_strength": call.get("strength"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": timestamp(first.created),
        "clip_skip": call.get("clip_skip", 0) + 1,
        "is_using_inpainting_conditioning": False,
        "version": "keras-diffusion",
        "not_followed": not_followed,
    }


def timestamp(seconds):
    return datetime.fromtimestamp(seconds).strftime("%Y%m%d%H%M%S")


async def progress(request):
    """GET progress."""
    service = request.app.state.service
    now = service.worker.progress
    waiting = (await run_in_threadpool(service.store.counts))["queued"]
    state = {
        "skipped": False,
        "interrupted": bool(now and now.id in request.app.state.a1111_interrupted),
        "stopping_generation": False,
        "job": now.id if now else "",
        "job_count": waiting + bool(now),
        "job_timestamp": timestamp(time.time()),
        "job_no": 0,
        "sampling_step": now.step if now else 0,
        "sampling_steps": now.num_steps if now else 0,
    }
    image = None
    if now and request.query_params.get("skip_current_image", "").lower() not in ("true", "1", "on", "yes"):
        image = preview_png(now, scale=8)
    return JSONResponse(
        {
            "progress": now.step / now.num_steps if now else 0,
            "eta_relative": (now.seconds_left or 0) if now else 0,
            "state": state,
            "current_image": image and base64.b64encode(image).decode(),
            "textinfo": f"{waiting} waiting" if waiting else None,
        }
    )


async def stop(request, all_rounds):
    """POST interrupt and skip: the job that runs ends with the images it has come to."""
    service = request.app.state.service
    if now := service.worker.progress:
        if all_rounds:
            request.app.state.a1111_interrupted.add(now.id)
        await run_in_threadpool(service.worker.cancel, now.id, True)
    return {}


async def options(request):
    """GET options."""
    return settings(request)


async def set_options(request):
    """POST options."""
    service, changes = request.app.state.service, calls.read_json(await request.body())
    known = settings(request)
    model, skip = a1111_fields.override(known, {name: changes[name] for name in changes if name in known})
    service.model = (await service.describe(model_name(model))).name
    request.app.state.a1111_settings["CLIP_stop_at_last_layers"] = skip + 1
    if unknown := changes.keys() - known.keys():
        logger.warning("A1111's settings that were not followed: %.300s", ", ".join(map(ascii, sorted(unknown))))


async def png_info(request):
    """POST png-info."""
    image = calls.read_json(await request.body()).get("image")
    content = (await run_in_threadpool(uploads.read_base64, "image", image)).content
    text = await run_in_threadpool(job_settings.read_text, content)
    return {"info": text, "items": {"parameters": text} if text else {}, "parameters": metadata.from_text(text)}


async def unload(request):
    """POST unload-checkpoint."""
    request.app.state.service.worker.unload()
    return {}


async def interrogate(request):
    """POST interrogate."""
    raise Problem("Model not found: the server has none that describes images.", 404, code="model_not_found")


def constant(value):
    async def endpoint(request):
        return value

    return endpoint


GET = {
    "options": options,
    "samplers": a1111_lists.samplers,
    "schedulers": a1111_lists.schedulers,
    "sd-models": a1111_lists.models,
    "loras": a1111_lists.loras,
    "embeddings": a1111_lists.embeddings,
    "memory": a1111_lists.memory,
    "upscalers": constant(a1111_extras.UPSCALERS),
    "cmd-flags": constant({"api": True}),
    "scripts": a1111_lists.scripts,
    **dict.fromkeys(["latent-upscale-modes", "sd-vae", "sd-modules", "hypernetworks", "face-restorers"], constant([])),
    **dict.fromkeys(["realesrgan-models", "prompt-styles", "script-info", "extensions"], constant([])),
}
POST = {
    "interrupt": partial(stop, all_rounds=True),
    "skip": partial(stop, all_rounds=False),
    "options": set_options,
    "png-info": png_info,
    "extra-single-image": a1111_extras.single,
    "extra-batch-images": a1111_extras.batch,
    "interrogate": interrogate,
    "unload-checkpoint": unload,
    "reload-checkpoint": constant({}),
    **dict.fromkeys(["refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings"], constant(None)),
}


def _json(endpoint):
    async def answer(request):
        return JSONResponse(await endpoint(request))

    return answer


ROUTES = [
    Route("/sdapi/v1/progress", progress),
    Route("/sdapi/v1/txt2img", partial(draw, from_image=False), methods=["POST"]),
    Route("/sdapi/v1/img2img", partial(draw, from_image=True), methods=["POST"]),
    *[Route(f"/sdapi/v1/{name}", _json(endpoint)) for name, endpoint in GET.items()],
    *[Route(f"/sdapi/v1/{name}", _json(endpoint), methods=["POST"]) for name, endpoint in POST.items()],
]
