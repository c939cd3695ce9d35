"""OpenAI's interface for images: generations, edits, models, and partial images as a stream.

Source: https://platform.openai.com/docs/api-reference/images. Fields may also be arguments of ours, such as
`num_steps`, `seed` or `negative_prompt`.
"""

import asyncio
import base64
import io
import json
import re
import time
from typing import NamedTuple

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse
from starlette.routing import Route

from keras_diffusion import arguments
from keras_diffusion.images import job_settings
from keras_diffusion.images.reading import OPAQUE
from keras_diffusion.serving import calls, uploads
from keras_diffusion.serving.jobs_api import event, event_stream
from keras_diffusion.serving.problems import Problem
from keras_diffusion.serving.service import EVERY
from keras_diffusion.serving.store import CANCELLED

QUALITIES = {"auto": 1, "low": 0.5, "medium": 1, "standard": 1, "high": 2, "hd": 2}  # → share of the model's steps
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
MOST_PARTIAL_IMAGES = 3
WORDS = {  # fields that are one of some words: their default, and what else they may be
    "response_format": ("b64_json", "url"),
    "quality": tuple(QUALITIES),
    "output_format": tuple(FORMATS),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "style": ("vivid", "natural"),
    "input_fidelity": ("low", "high"),
}
OWN = calls.ARGUMENTS.keys() - {"prompt", "batch_size", "img_width", "img_height"}
TEXTS = {"prompt", "model", "size", "user", "negative_prompt", "sampler", "spacing", "long_prompts", *WORDS}
USAGE = {
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0),
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


class Wish(NamedTuple):
    """Holds what a request asks for beside the arguments of the job.

    Args:
        prompt: Its prompt.
        url: Whether it wants addresses rather than base64.
        format: One of `FORMATS`.
        quality: One of `QUALITIES`.
        compression: Quality of JPEG and WebP, 0 to 100.
        stream: Whether the answer is a stream.
        partial_images: How many partial images it has.
        size: (width, height) of the images in pixels.
    """

    prompt: str
    url: bool
    format: str
    quality: str
    compression: int
    stream: bool
    partial_images: int
    size: tuple


async def generations(request):
    """POST /v1/images/generations."""
    given = calls.read_json(await request.body())
    return await draw(request, "image_generation", "text_to_image", given, [])


async def edits(request):
    """POST /v1/images/edits: transparent pixels of the mask, or else of the image, are repainted."""
    async with request.form(max_files=uploads.MOST + 1, max_fields=100) as form:
        images = [file for name in ("image", "image[]") for file in form.getlist(name)]
        masks = form.getlist("mask")
        given = {name: value for name, value in form.items() if name not in ("image", "image[]", "mask")}
        files = [await it.read() for it in (*images, *masks) if isinstance(it, UploadFile)]
    if len(images) != 1 or len(masks) > 1 or len(files) != len(images) + len(masks):
        raise Problem(f"An edit takes one image and at most one mask, as files. Received: {len(images)}", param="image")
    given = {name: _value(name, value) for name, value in given.items()}
    inputs = await run_in_threadpool(_inputs, *files)
    if len(inputs) == 2:
        given["mask_white"] = "keep"
    return await draw(request, "image_edit", "inpaint" if len(inputs) == 2 else "image_to_image", given, inputs)


def _value(name, value):
    """The value of a form's field, which is text: JSON where it is no word."""
    if not isinstance(value, str):
        raise Problem(f"`{name[:99]}` must be text, not a file.", param=name[:99])
    if name in TEXTS:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Problem(f"`{name[:99]}` cannot be read. Received: {value!r:.99}", param=name[:99]) from error


def _inputs(image, mask=None):
    """The image of an edit, and its mask if it or the image has transparent pixels."""
    inputs = [uploads.read_image("image", image)]
    seen = image if mask is None else mask
    if mask is not None:
        uploads.read_image("mask", mask)
    with Image.open(io.BytesIO(seen)) as opened:
        alpha = opened.convert("RGBA").getchannel("A").getextrema()[0] if opened.has_transparency_data else OPAQUE
    if alpha == OPAQUE and mask is not None:
        raise Problem("`mask` must be an image with transparent pixels; those are repainted.", param="mask")
    return inputs if alpha == OPAQUE else [*inputs, uploads.read_image("mask", seen)]


async def draw(request, kind, task, given, inputs):
    """Answers a request for images.

    Args:
        request: The request.
        kind: How the events of a stream begin, "image_generation" or "image_edit".
        task: The name of the method that draws.
        given: The fields, a dict.
        inputs: A list of `uploads.Input`.
    """
    service = request.app.state.service
    given = {name: value for name, value in given.items() if value is not None}
    model = await service.describe(given.pop("model", None))
    wish, call = translate(given, model, inputs[0].size if inputs else (model.img_width, model.img_height))
    job = await service.submit(task, call, inputs, model.name)
    if wish.stream:
        return event_stream(stream(service, job, kind, wish))
    waiting = asyncio.ensure_future(service.ended(job.id))
    while not (await asyncio.wait([waiting], timeout=5 * EVERY))[0]:
        if await request.is_disconnected():  # nobody else can fetch or stop it
            await run_in_threadpool(service.cancel, job)
    job = _drawn(await waiting)
    if wish.url:
        base = f"{request.url.scheme}://{request.headers['host']}/v1/jobs/{job.id}/images"
        data = [{"url": f"{base}/{i}.png"} for i in range(job.images)]
    else:
        images = await run_in_threadpool(service.images, job)
        data = [{"b64_json": await run_in_threadpool(encode, image, wish)} for image in images]
    rows = [row | {"revised_prompt": wish.prompt} for row in data]
    return JSONResponse({"created": int(job.created), "data": rows, "usage": USAGE, **shown(wish)})


def translate(given, model, size):
    """Translates the fields of a request.

    Args:
        given: A dict.
        model: The `Description` of the model.
        size: (width, height) of the images in pixels, if the request does not say.

    Returns:
        The `Wish`, and the arguments of the job, a dict.

    Raises:
        Problem: If a field is unknown or wrong.
    """
    try:
        words = {name: arguments.choice(name, given.get(name, WORDS[name][0]), WORDS[name]) for name in WORDS}
        stream = arguments.boolean("stream", given.get("stream", False))
        few = arguments.whole_number("partial_images", given.get("partial_images", 0), 0, MOST_PARTIAL_IMAGES)
        compression = arguments.whole_number("output_compression", given.get("output_compression", 100), 0, 100)
    except (TypeError, ValueError) as error:
        raise Problem(str(error), param=str(error).split("`")[1]) from error
    if words["response_format"] == "url" and words["output_format"] != "png":
        raise Problem("`response_format` url gives PNG only; take b64_json.", param="response_format")
    known = {*WORDS, "stream", "partial_images", "output_compression", "n", "size", "user", "prompt"}
    call = {name: value for name, value in given.items() if name not in known}
    if unknown := call.keys() - OWN:
        raise Problem(f"There is no such field. Received: {sorted(unknown)!r:.200}", param=min(unknown)[:99])
    call |= {"prompt": given.get("prompt"), "batch_size": given.get("n", 1)} | _size(given.get("size", "auto"))
    call.setdefault("num_steps", max(1, round(QUALITIES[words["quality"]] * model.num_steps)))
    url, format, quality = words["response_format"] == "url", words["output_format"], words["quality"]
    size = call.get("img_width", size[0]), call.get("img_height", size[1])
    return Wish(given.get("prompt"), url, format, quality, compression, stream, few, size), call


def _size(size):
    if size == "auto":
        return {}
    if not (isinstance(size, str) and (match := SIZE.fullmatch(size))):
        raise Problem(f'`size` must be "auto" or WIDTHxHEIGHT. Received: {size!r:.99}', param="size")
    return {"img_width": int(match[1]), "img_height": int(match[2])}


def shown(wish):
    """Returns what an answer says about its images, a dict."""
    size = "x".join(map(str, wish.size))
    return {"background": "opaque", "output_format": wish.format, "quality": wish.quality, "size": size}


def encode(png, wish):
    """Returns an image as a client wants it, in base64; settings stay inside."""
    if wish.format != "png":
        png = job_settings.convert(png, FORMATS[wish.format], wish.compression)
    return base64.b64encode(png).decode()


def _drawn(job):
    if job.state == CANCELLED:
        raise Problem("The job was cancelled.", 409, code="job_cancelled")
    return job


async def stream(service, job, kind, wish):
    """Yields the events of a job: partial images, and at the end each image; cancels it if nobody listens."""
    about = {"created_at": int(time.time()), **shown(wish)}

    def told(what, **fields):
        return event(f"{kind}.{what}", {"type": f"{kind}.{what}", **fields, **about})

    sent, waiting = 0, asyncio.ensure_future(service.ended(job.id))
    try:
        while not (await asyncio.wait([waiting], timeout=EVERY))[0]:
            now = service.progress(job.id)
            due = now and now.step * (wish.partial_images + 1) // now.num_steps
            if now and now.preview is not None and sent < min(due, wish.partial_images):
                image = await run_in_threadpool(_partial, now.preview[0], wish)
                yield told("partial_image", b64_json=image, partial_image_index=sent)
                sent += 1
        for image in await run_in_threadpool(service.images, _drawn(await waiting)):
            image = await run_in_threadpool(encode, image, wish)
            yield told("completed", b64_json=image, usage=USAGE)
    except Problem as problem:
        yield event("error", {"type": "error", "error": problem.error()})
    finally:
        waiting.cancel()
        service.worker.cancel(job.id)


def _partial(preview, wish):
    """The rough image of a preview, uint8 (h, w, 3), in the size of the whole one."""
    content = io.BytesIO()
    Image.fromarray(preview).resize(wish.size, Image.Resampling.BICUBIC).save(content, FORMATS[wish.format])
    return base64.b64encode(content.getvalue()).decode()


async def models(request):
    """GET /v1/models."""
    known = await request.app.state.service.descriptions()
    return JSONResponse({"object": "list", "data": [_model(name) for name in known]})


async def model(request):
    """GET /v1/models/{id}."""
    return JSONResponse(_model((await request.app.state.service.describe(request.path_params["id"])).name))


def _model(name):
    return {"id": name, "object": "model", "created": 0, "owned_by": "keras-diffusion"}


ROUTES = [
    Route("/v1/images/generations", generations, methods=["POST"]),
    Route("/v1/images/edits", edits, methods=["POST"]),
    Route("/v1/models", models),
    Route("/v1/models/{id:path}", model),
]
