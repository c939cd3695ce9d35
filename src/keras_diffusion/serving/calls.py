"""Checks what clients ask for: the arguments of a call, as JSON."""

import json
import math
import secrets
from typing import NamedTuple

from keras_diffusion import arguments
from keras_diffusion.images.reading import MASK_WHITE
from keras_diffusion.images.resizing import HOW
from keras_diffusion.prompts.reading import LONG_PROMPTS
from keras_diffusion.sampling import names
from keras_diffusion.serving.problems import Problem

TASKS = {"text_to_image": (), "image_to_image": ("image",), "inpaint": ("image", "mask")}  # and what each starts from
CONTROL = "control"  # the images of `controls`, which any task takes
SEEDS = 2**32  # that are drawn; those of A1111
LARGEST_SEED = 2**53 - 1024  # that a client in JavaScript can tell from its neighbours, also those of a batch
LONGEST_PROMPT = 20_000  # characters
DEEPEST = 16  # lists and objects within each other in JSON
MOST_LORAS = 16
MOST_CONTROLS = 4


class Limits(NamedTuple):
    """Limits what one client can use of the server.

    Args:
        max_pixels: Pixels of all images of a job together.
        max_side: Pixels along a side.
        max_steps: Number of steps.
        max_batch: Number of images of a job.
        max_queue: Number of jobs that wait.
        max_body: Bytes of a request.
        seconds_to_send: How long a client may take to send a request.
        max_connections: Number of connections.
    """

    max_pixels: int = 2**23
    max_side: int = 2048
    max_steps: int = 150
    max_batch: int = 16
    max_queue: int = 100
    max_body: int = 64 * 2**20
    seconds_to_send: float = 60
    max_connections: int = 200


def text(name, value, limits):
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a str. Received: {name}={value!r:.200}")
    if len(value) > LONGEST_PROMPT:
        raise ValueError(f"`{name}` must have at most {LONGEST_PROMPT} characters. Received: {len(value)} characters")
    return value


def sampler(name, value, limits):
    names.resolve(value)
    return value


def number(smallest, largest):
    return lambda name, value, limits: arguments.number(name, value, smallest, largest)


def whole(smallest, largest):
    return lambda name, value, limits: arguments.whole_number(name, value, smallest, largest)


def choice(choices):
    return lambda name, value, limits: arguments.choice(name, value, choices)


def pair(name, value, limits):
    if not (isinstance(value, list) and len(value) == 2):
        raise TypeError(f"`{name}` must be a list of two numbers. Received: {name}={value!r:.200}")
    return [arguments.number(name, x, 0, arguments.LARGEST_SIDE) for x in value]


def sides(name, value, limits):
    """Checks a list of two numbers of pixels."""
    if not (isinstance(value, list) and len(value) == 2):
        raise TypeError(f"`{name}` must be a list, height and width. Received: {name}={value!r:.200}")
    return [arguments.whole_number(name, x, 1, limits.max_side) for x in value]


def loras(name, value, limits):
    """Checks a list of {"name", "scale"}."""
    if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
        raise TypeError(f'`{name}` must be a list of {{"name", "scale"}}. Received: {value!r:.200}')
    if len(value) > MOST_LORAS:
        raise ValueError(f"`{name}` must name at most {MOST_LORAS} LoRAs. Received: {len(value)}")
    for row in value:
        if unknown := row.keys() - {"name", "scale"}:
            raise TypeError(f"A row of `{name}` has `name` and `scale`. Received: {sorted(unknown)!r:.200}")
    rows = [
        {"name": text("name", row.get("name"), limits), "scale": arguments.number("scale", row.get("scale", 1.0))}
        for row in value
    ]
    if len({row["name"] for row in rows}) < len(rows):
        raise ValueError(f"`{name}` must name each LoRA once. Received: {[row['name'] for row in rows]!r:.200}")
    return rows


def controls(name, value, limits):
    """Checks a list of {"name", "scale", "start", "end", "resize"}."""
    usual = {"scale": 1.0, "start": 0.0, "end": 1.0, "resize": "stretch"}
    if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
        raise TypeError(f"`{name}` must be a list of objects. Received: {value!r:.200}")
    if len(value) > MOST_CONTROLS:
        raise ValueError(f"`{name}` must name at most {MOST_CONTROLS} ControlNets. Received: {len(value)}")
    checked = []
    for row in value:
        if unknown := row.keys() - usual.keys() - {"name", "image"}:
            raise TypeError(
                f"A row of `{name}` has name, image, {', '.join(usual)}. Received: {sorted(unknown)!r:.200}"
            )
        row = usual | row
        start, end = arguments.interval("start and end", (row["start"], row["end"]))
        scale = arguments.number("scale", row["scale"], -100, 100)
        how = arguments.choice("resize", row["resize"], HOW)
        its_name = text("name", row.get("name"), limits)
        checked.append({"name": its_name, "scale": scale, "start": start, "end": end, "resize": how})
    return checked


ARGUMENTS = {  # name → function of the name, the value and the limits that returns the value, checked
    "prompt": text,
    "negative_prompt": text,
    "batch_size": lambda name, value, limits: arguments.whole_number(name, value, 1, limits.max_batch),
    "num_steps": lambda name, value, limits: arguments.whole_number(name, value, 1, limits.max_steps),
    "unconditional_guidance_scale": number(0, 1000),
    "seed": whole(0, LARGEST_SEED),
    "variation_seed": whole(0, LARGEST_SEED),
    "variation_strength": number(0, 1),
    "seed_resize_from": sides,
    "img_width": lambda name, value, limits: arguments.whole_number(name, value, 1, limits.max_side),
    "img_height": lambda name, value, limits: arguments.whole_number(name, value, 1, limits.max_side),
    "strength": number(0, 1),
    "mask_white": choice(MASK_WHITE),
    "sampler": sampler,
    "spacing": lambda name, value, limits: names.resolve_spacing(value),
    "karras": lambda name, value, limits: arguments.boolean(name, value),
    "eta": number(0, 1),
    "guidance_rescale": number(0, 1),
    "guidance_interval": lambda name, value, limits: list(arguments.interval(name, value)),
    "deep_cache": whole(1, 1000),
    "prompt_weighting": lambda name, value, limits: arguments.boolean(name, value),
    "long_prompts": choice(LONG_PROMPTS),
    "clip_skip": whole(0, 31),
    "original_size": pair,
    "crop": pair,
    "target_size": pair,
    "aesthetic_score": number(0, 10),
    "loras": loras,
    "controls": controls,
}
STRENGTHS = {"image_to_image": {"strength": 0.8}, "inpaint": {"strength": 1.0}}  # the defaults of those methods
ONLY_FROM_AN_IMAGE = ("strength", "mask_white")


def read_json(body):
    """Reads a JSON object that a client has sent, bytes.

    Raises:
        Problem: If it is none, is nested too deep, or holds NaN or Infinity, which JSON has not.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
        _require_plain(value)
    except (ValueError, RecursionError) as error:
        message = "The body must be a JSON object of Unicode text and finite numbers, and not nested too deep."
        raise Problem(message, code="invalid_json") from error
    if not isinstance(value, dict):
        raise Problem(f"The body must be a JSON object. Received: {type(value).__name__}", code="invalid_json")
    return value


def _no_constant(name):
    raise ValueError(name)


def _require_plain(value, depth=DEEPEST):
    if isinstance(value, str):
        value.encode()  # fails on half of a surrogate pair
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    elif isinstance(value, dict | list):
        if not depth:
            raise RecursionError
        for inner in value:
            _require_plain(inner, depth - 1)
        for inner in value.values() if isinstance(value, dict) else ():
            _require_plain(inner, depth - 1)


def check(task, given, model, limits, adapters):
    """Checks the arguments of a call, and fills in the seed and the number of steps.

    Args:
        task: The name of the method that draws.
        given: A dict from names to values; None counts as not given.
        model: The `Description` of the model that draws.
        limits: The `Limits`.
        adapters: The `Adapters`.

    Returns:
        A dict of arguments.

    Raises:
        Problem: If an argument is unknown, missing or wrong.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := given.keys() - ARGUMENTS.keys():
        listed = ", ".join(ARGUMENTS)
        raise Problem(f"The arguments are {listed}. Received: {sorted(unknown)!r:.200}", param=min(unknown))
    name = None
    try:
        checked = {}
        for name, value in given.items():
            checked[name] = ARGUMENTS[name](name, value, limits)
        name = "variation_seed"
        if name in checked and not checked.get("variation_strength"):
            raise ValueError(f"`{name}` needs a `variation_strength` above 0. Received: {name}={checked[name]}")
        name = "prompt"
        text(name, checked.get(name), limits)
        if not TASKS[task] and (wrong := checked.keys() & {*ONLY_FROM_AN_IMAGE}):
            name = min(wrong)
            raise ValueError(f"`{name}` needs an `image`. Received: task='text_to_image'")
        for name in ("img_width", "img_height"):
            if name in checked:
                arguments.image_side(name, checked[name], model.size_multiple)
        name = "loras"
        adapters.require(row["name"] for row in checked.get("loras", ()))
        name = "controls"
        adapters.require((row["name"] for row in checked.get("controls", ())), "ControlNet")
    except (TypeError, ValueError) as error:
        raise Problem(str(error), param=name) from error
    except OverflowError as error:
        raise Problem(f"`{name}` is too large a number.", param=name) from error
    filled = {"num_steps": model.num_steps, "seed": secrets.randbelow(SEEDS), "batch_size": 1}
    if checked.get("variation_strength"):
        filled["variation_seed"] = secrets.randbelow(SEEDS)
    return filled | STRENGTHS.get(task, {}) | checked


def check_sizes(call, inputs, model, limits):
    """Refuses a call of too many pixels, of a size that the model cannot draw, or with a mask of another size.

    Args:
        call: What `check` returns.
        inputs: A list of `uploads.Input`, what the call starts from.
        model: The `Description` of the model.
        limits: The `Limits`.
    """
    given, *others = [it.size for it in inputs if it.name == "image"] or [(model.img_width, model.img_height)]
    width, height = call.get("img_width", given[0]), call.get("img_height", given[1])
    if any(size != given for size in others):
        raise Problem("The images of a job must have one size.", param="image")
    for it in inputs:
        if it.name == "mask" and it.size not in (given, (width, height)):
            mask, image = ("×".join(map(str, size)) for size in (it.size, given))
            raise Problem(f"`mask` must have the size of the image, {image}. Received: {mask}", param="mask")
    if (size := width * height * call["batch_size"]) > limits.max_pixels:
        raise Problem(
            f"The images of a job must have at most {limits.max_pixels} pixels together. "
            f"Received: {call['batch_size']} of {width}×{height}, {size} pixels",
            param="batch_size",
        )
    for name, side in (("img_width", width), ("img_height", height)):
        try:
            arguments.image_side(name, side, model.size_multiple)
        except ValueError as error:
            raise Problem(f"{error}. Give `img_width` and `img_height` to scale the image.", param=name) from error
