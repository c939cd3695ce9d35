"""The ControlNet extension's part of A1111's API: units of `alwayson_scripts`, and the lists under /controlnet/.

Source: scripts/api.py and internal_controlnet/args.py of Mikubill's sd-webui-controlnet 1.1.
"""

import re

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

from keras_diffusion.serving import uploads
from keras_diffusion.serving.problems import Problem

NAME = "controlnet"
NONE = ("none", "None", "", None)
HASH = re.compile(r"(\.safetensors|\.pth|\.ckpt|\.pt|\.bin)?\s*(\[[0-9a-f]+\])?$")  # behind the name of a model
RESIZE_MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")  # 0, 1, 2
HOW = ("stretch", "crop", "pad")  # what they are here
# Fields that change images in a way that this library does not have, and the only values that are taken.
ONLY = {
    "control_mode": ("Balanced", 0),
    "effective_region_mask": (),
    "hr_option": ("Both", "HiResFixOption.BOTH", 0),
    "inpaint_crop_input_image": (True, False),
    "ipadapter_input": (),
    "mask": (),
    "mask_image": (),
    "union_control_type": ("Unknown", "All"),
}


def units(scripts):
    """Returns the units that are enabled in the field `alwayson_scripts`, a list of dicts."""
    if not isinstance(scripts, dict):
        return []
    args = next((its.get("args") for name, its in scripts.items() if is_controlnet(name) and isinstance(its, dict)), ())
    if not isinstance(args or (), list | tuple) or not all(isinstance(unit, dict) for unit in args or ()):
        raise Problem(f"The `args` of {NAME} must be a list of objects. Received: {args!r:.200}", 422, NAME)
    return [unit for unit in args or () if unit.get("enabled", True)]


def is_controlnet(script):
    return isinstance(script, str) and script.lower() == NAME


def translate(scripts, init_images):
    """Translates units.

    Args:
        scripts: The field `alwayson_scripts`.
        init_images: The first of these in base64 is what units without an image of their own follow.

    Returns:
        The argument `controls`, a list of dicts, and a list of `uploads.Input`, one for each.

    Raises:
        Problem: If a unit is wrong, or asks for what there is not here.
    """
    rows, inputs = [], []
    for unit in units(scripts):
        if (module := unit.get("module")) not in NONE:
            raise Problem(
                "The server has no preprocessors. Send the image that the preprocessor makes, with the module none. "
                f"Received: module={module!r:.99}",
                422,
                NAME,
            )
        for name, values in ONLY.items():
            if (value := unit.get(name)) and value not in values:
                message = f"`{name}` is not supported, other than by {values!r}. Received: {value!r:.99}"
                raise Problem(message, 422, NAME)
        mode = unit.get("resize_mode", 1)
        mode = RESIZE_MODES.index(mode) if mode in RESIZE_MODES else mode
        if isinstance(mode, bool) or mode not in range(len(HOW)):
            raise Problem(f"`resize_mode` must be one of {', '.join(RESIZE_MODES)}. Received: {mode!r:.99}", 422, NAME)
        model = unit.get("model")
        rows.append(
            {
                "name": HASH.sub("", model) if isinstance(model, str) else model,
                "scale": unit.get("weight", 1.0),
                "start": unit.get("guidance_start", 0.0),
                "end": unit.get("guidance_end", 1.0),
                "resize": HOW[mode],
            }
        )
        image = unit.get("image") or unit.get("input_image") or next(iter(init_images or ()), None)
        inputs.append(uploads.read_base64("control", image.get("image") if isinstance(image, dict) else image))
    return rows, inputs


def _lists(request):
    names = sorted(request.app.state.service.adapters.controlnets())
    modules = {"module_list": ["none"], "module_detail": {"none": {"model_free": False, "sliders": []}}}
    everything = {"module_list": ["none"], "model_list": names, "default_option": "none", "default_model": "None"}
    return {
        "model_list": {"model_list": names},
        "module_list": modules,
        "control_types": {"control_types": {"All": everything}},
        "settings": {"control_net_unit_count": 3},
        "version": {"version": 2},
    }


async def lists(request):
    """GET model_list, module_list, control_types, settings and version."""
    found = (await run_in_threadpool(_lists, request)).get(request.path_params["name"])
    if found is None:
        raise Problem("Not Found.", 404)
    return JSONResponse(found)


async def detect(request):
    """POST detect."""
    raise Problem("The server has no preprocessors. Send the image that one makes, with the module none.", 422, NAME)


ROUTES = [Route("/controlnet/{name}", lists), Route("/controlnet/detect", detect, methods=["POST"])]
