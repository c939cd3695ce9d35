"""The server's own interface: jobs with progress, preview, cancel and events. docs/serving.md describes it."""

import asyncio
import json
import time

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from keras_diffusion.images import job_settings
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.spacings import ALL_SPACINGS
from keras_diffusion.serving import calls, uploads
from keras_diffusion.serving.problems import Problem
from keras_diffusion.serving.service import EVERY, preview_png
from keras_diffusion.serving.store import STATES
from keras_diffusion.system.memory import resident_memory

MOST_JOBS = 500  # of an answer
QUIET = 15  # seconds without an event, after which a comment shows that the server is there
IN_SIGHT = {"Cache-Control": "no-store"}
FOR_GOOD = {"Cache-Control": "private, max-age=31536000, immutable"}  # the image of a job does not change
SHOWN_LIMITS = ("max_pixels", "max_steps", "max_batch", "max_queue", "max_body")


async def options(request):
    """GET /v1/options."""
    service = request.app.state.service
    models = [
        {
            "name": name,
            "loaded": name == service.worker.models.loaded,
            "defaults": {
                "num_steps": its.num_steps,
                "unconditional_guidance_scale": its.guidance,
                "sampler": its.sampler,
                "schedule": its.spacing,
                "img_width": its.img_width,
                "img_height": its.img_height,
            },
            "size_multiple": its.size_multiple,
            "max_size": service.limits.max_side,
        }
        for name, its in (await service.descriptions()).items()
    ]
    adapters = service.adapters
    loras, embeddings, controlnets = await run_in_threadpool(
        lambda: [sorted(listed()) for listed in (adapters.loras, adapters.embeddings, adapters.controlnets)]
    )
    return JSONResponse(
        {
            "models": models,
            "model": service.model,
            "samplers": [*SAMPLERS],
            "spacings": [*ALL_SPACINGS],
            "loras": loras,
            "embeddings": embeddings,
            "controlnets": controlnets,
            "limits": {name: getattr(service.limits, name) for name in SHOWN_LIMITS},
        }
    )


async def submit(request):
    """POST /v1/jobs."""
    service, body = request.app.state.service, await request.body()
    given, inputs = await run_in_threadpool(_read, body)
    task, model = given.pop("task", "text_to_image"), given.pop("model", None)
    job = await service.submit(task, given, inputs, model)
    shown = await run_in_threadpool(lambda: service.show(service.store.get(job.id) or job))
    return JSONResponse({name: shown[name] for name in ("id", "state", "place")}, 202)


def _read(body):
    """Reads a job: a dict of its fields, and a list of what it starts from."""
    given = calls.read_json(body)
    images = [(name, given.pop(name, None)) for name in ("image", "mask")]
    if isinstance(rows := given.get("controls"), list):
        images += [(calls.CONTROL, row.get("image")) for row in rows[: uploads.MOST] if isinstance(row, dict)]
    return given, [uploads.read_base64(name, value) for name, value in images if value is not None]


async def jobs(request):
    """GET /v1/jobs."""
    service, asked = request.app.state.service, request.query_params
    limit, before = asked.get("limit", "50"), asked.get("before")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST_JOBS):
        raise Problem(f"`limit` must be from 1 to {MOST_JOBS}. Received: {limit!r:.99}", param="limit")
    found = await run_in_threadpool(lambda: [service.show(job) for job in service.store.newest(int(limit), before)])
    return JSONResponse({"jobs": found}, headers=IN_SIGHT)


async def find(request):
    """Returns the job that a path names."""
    service = request.app.state.service
    if job := await run_in_threadpool(service.store.get, request.path_params["id"]):
        return job
    raise Problem("There is no such job.", 404, code="job_not_found")


async def show(request):
    """GET /v1/jobs/{id}."""
    job, service = await find(request), request.app.state.service
    return JSONResponse(await run_in_threadpool(service.show, job), headers=IN_SIGHT)


async def cancel(request):
    """POST /v1/jobs/{id}/cancel."""
    job, service = await find(request), request.app.state.service
    return JSONResponse(await run_in_threadpool(lambda: service.show(service.cancel(job))), headers=IN_SIGHT)


async def delete(request):
    """DELETE /v1/jobs/{id}."""
    job, service = await find(request), request.app.state.service
    await run_in_threadpool(lambda: (service.cancel(job), service.store.delete(job.id)))
    return Response(status_code=204)


async def events(request):
    """GET /v1/jobs/{id}/events."""
    job, service = await find(request), request.app.state.service
    return event_stream(_events(service, job.id))


def event_stream(events):
    """Returns the response that sends events, strings or bytes, as they come."""
    headers = IN_SIGHT | {"X-Accel-Buffering": "no"}  # proxies are not to hold events back
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def event(name, data):
    """Returns the text of an event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _events(service, id):
    """Yields a job at every change until it has ended or is deleted."""
    seen, shown, sent = None, None, time.monotonic()
    while True:
        progress = service.progress(id)
        if seen != (seen := (service.store.changes, progress and progress.step)):
            if not (job := await run_in_threadpool(service.store.get, id)):
                return
            now = await run_in_threadpool(service.show, job)
            if shown != (shown := now | {"seconds_left": None}):
                sent = time.monotonic()
                yield event("job", now)
            if job.ended:
                return
        elif time.monotonic() - sent > QUIET:
            sent = time.monotonic()
            yield ": waiting\n\n"
        await asyncio.sleep(EVERY)


async def image(request):
    """GET /v1/jobs/{id}/images/{i}.png."""
    job, service = await find(request), request.app.state.service
    number = request.path_params["number"]
    content = await run_in_threadpool(service.store.read, job.id, f"{number}.png") if number < job.images else None
    if not content:
        raise Problem(f"The job has {job.images} images.", 404, code="image_not_found")
    return Response(content, media_type="image/png", headers=FOR_GOOD)


async def preview(request):
    """GET /v1/jobs/{id}/preview.png."""
    job, service = await find(request), request.app.state.service
    if not (content := preview_png(service.progress(job.id))):
        raise Problem("There is no preview; the job is not running.", 404, code="image_not_found")
    return Response(content, media_type="image/png", headers=IN_SIGHT)


async def read_settings(request):
    """POST /v1/read-settings."""
    body = await request.body()
    try:
        arguments, text = await run_in_threadpool(job_settings.read, body)
    except ValueError as error:
        raise Problem(str(error), 422) from error
    if not text:
        raise Problem("The image does not say how it was made.", 422, code="no_settings")
    return JSONResponse({"arguments": arguments, "text": text})


async def health(request):
    """GET /health."""
    worker = request.app.state.service.worker
    if worker.failure or (worker.ready.is_set() and not worker.is_alive()):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok", "ready": worker.ready.is_set()})


async def metrics(request):
    """GET /metrics, the text format of Prometheus."""
    service = request.app.state.service
    counts = await run_in_threadpool(service.store.counts)
    rows = [(f'keras_diffusion_jobs{{state="{state}"}}', counts[state]) for state in STATES]
    rows += [
        ("keras_diffusion_images_total", service.worker.images),
        ("keras_diffusion_drawing_seconds_total", round(service.worker.seconds, 3)),
    ]
    if memory := resident_memory():
        rows.append(("process_resident_memory_bytes", memory))
    text = "".join(f"{name} {value}\n" for name, value in rows)
    return Response(text, media_type="text/plain; version=0.0.4")


ROUTES = [
    Route("/health", health),
    Route("/metrics", metrics),
    Route("/v1/options", options),
    Route("/v1/jobs", jobs),
    Route("/v1/jobs", submit, methods=["POST"]),
    Route("/v1/jobs/{id}", show),
    Route("/v1/jobs/{id}", delete, methods=["DELETE"]),
    Route("/v1/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/jobs/{id}/events", events),
    Route("/v1/jobs/{id}/images/{number:int}.png", image),
    Route("/v1/jobs/{id}/preview.png", preview),
    Route("/v1/read-settings", read_settings, methods=["POST"]),
]
