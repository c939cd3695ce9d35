"""Enlarges images as A1111's page "Extras" does, with the filters that need no network."""

import base64
import io

from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool

from keras_diffusion import arguments
from keras_diffusion.images.reading import open_image
from keras_diffusion.serving import calls, uploads
from keras_diffusion.serving.problems import Problem

FILTERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
UPSCALERS = [
    {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4 if kind is not None else 1}
    for name, kind in FILTERS.items()
]
FACES = ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")


async def single(request):
    """POST extra-single-image."""
    given = calls.read_json(await request.body())
    image = await run_in_threadpool(_enlarge, given.get("image"), given, request.app.state.service.limits)
    return {"image": image, "html_info": ""}


async def batch(request):
    """POST extra-batch-images."""
    given, limits = calls.read_json(await request.body()), request.app.state.service.limits
    rows = given.get("imageList")
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows) and len(rows) <= limits.max_batch):
        message = f'`imageList` must be a list of at most {limits.max_batch} {{"data", "name"}}.'
        raise Problem(message, 422, "imageList")
    images = [await run_in_threadpool(_enlarge, row.get("data"), given, limits) for row in rows]
    return {"images": images, "html_info": ""}


def _enlarge(value, given, limits):
    """Enlarges an image in base64 as the fields of a request say; returns a PNG in base64."""
    for name in FACES:
        if given.get(name):
            raise Problem(f"`{name}` must be 0; there is no such model. Received: {given[name]!r:.99}", 422, name)
    kind = given.get("upscaler_1", "None")
    if not isinstance(kind, str) or kind not in FILTERS:
        message = f"`upscaler_1` must be one of {', '.join(FILTERS)}. Received: {kind!r:.99}"
        raise Problem(message, 422, "upscaler_1")
    content = uploads.read_base64("image", value).content
    with uploads.DECODING:
        image = open_image("image", content).convert("RGB")
        if FILTERS[kind] is not None:
            image = _resize(image, given, FILTERS[kind], limits)
        file = io.BytesIO()
        image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _resize(image, given, kind, limits):
    try:
        if given.get("resize_mode", 0) == 1:
            sides = [
                arguments.whole_number(name, given.get(name, 512), 1, arguments.LARGEST_SIDE)
                for name in ("upscaling_resize_w", "upscaling_resize_h")
            ]
        else:
            scale = arguments.number("upscaling_resize", given.get("upscaling_resize", 2), 0.01, 8)
            sides = [max(1, round(side * scale)) for side in image.size]
    except (TypeError, ValueError) as error:
        raise Problem(str(error), 422) from error
    if sides[0] * sides[1] > limits.max_pixels:
        raise Problem(f"An image may have {limits.max_pixels} pixels. Received: {sides[0]}×{sides[1]}", 422)
    if given.get("resize_mode", 0) == 1 and given.get("upscaling_crop", True):
        return ImageOps.fit(image, sides, kind)
    return image.resize(sides, kind)
