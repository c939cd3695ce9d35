"""Translates the fields of A1111's txt2img and img2img into arguments of ours.

Source of the fields: modules/api/models.py and modules/processing.py of AUTOMATIC1111's stable-diffusion-webui 1.10.
"""

import re
import secrets
from typing import NamedTuple

from keras_diffusion.sampling import names
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.variation import seeds_alone
from keras_diffusion.serving import a1111_controlnet, calls, uploads
from keras_diffusion.serving.problems import Problem

ARGUMENTS = {  # field → argument
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "batch_size": "batch_size",
    "steps": "num_steps",
    "cfg_scale": "unconditional_guidance_scale",
    "width": "img_width",
    "height": "img_height",
}
FOLLOWED = {
    *("sampler_name", "sampler_index", "scheduler", "eta", "seed", "n_iter", "override_settings", "send_images"),
    *("init_images", "mask", "denoising_strength", "inpainting_mask_invert", "enable_hr", "hr_scale", "hr_upscaler"),
    *("alwayson_scripts", "subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w"),
    *("hr_resize_x", "hr_resize_y", "hr_second_pass_steps", "hr_prompt", "hr_negative_prompt"),
}
# Fields that change images in a way that this library does not have: all other values than these are refused.
WITHOUT_EFFECT = {
    "firstpass_image": (),
    "firstphase_height": (0,),
    "firstphase_width": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "infotext": ("",),
    "initial_noise_multiplier": (1,),
    "latent_mask": (),
    "refiner_checkpoint": ("", "None"),
    "resize_mode": (0,),
    "restore_faces": (False,),
    "script_args": (),
    "script_name": ("", "None"),
    "s_churn": (0,),
    "s_min_uncond": (0,),
    "s_noise": (1,),
    "styles": (),
    "tiling": (False,),
}
# Fields that say nothing about images here.
SILENT = {
    *("comments", "disable_extra_networks", "do_not_save_grid", "do_not_save_samples", "force_task_id"),
    *("image_cfg_scale", "include_init_images", "override_settings_restore_afterwards", "refiner_switch_at"),
    *("s_tmax", "s_tmin", "save_images"),  # every image is kept
}
# Fields of inpainting that are not followed, but for these values; clients send others all the time.
OF_MASKS = {
    "inpaint_full_res": (False, 0),
    "inpaint_full_res_padding": (0, 32),
    "inpainting_fill": (1,),
    "mask_blur": (0,),
    "mask_blur_x": (0,),
    "mask_blur_y": (0,),
    "mask_round": (True,),
}
OF_FILES = re.compile(r"(do_not_|enable_pnginfo|grid_|jpeg_|live_|outdir_|return_|samples_|save_|send_|show_|webp_).*")
STRENGTH, HIRES_STRENGTH, HIRES_SCALE = 0.75, 0.7, 2.0  # their defaults
HIRES_UPSCALERS = ("Lanczos", "None", "")


class Translation(NamedTuple):
    """Holds a request of A1111's API in this library's terms.

    Args:
        task: The name of the method that draws.
        model: The name of the model, or None.
        rounds: The arguments of each of `n_iter` jobs, dicts.
        inputs: A list of `uploads.Input`.
        hires: The arguments of the second pass of each job, a dict, or None.
        send_images: Whether the answer has images in it.
        not_followed: Names of fields that were not followed.
    """

    task: str
    model: str | None
    rounds: list
    inputs: list
    hires: dict | None
    send_images: bool
    not_followed: list


def translate(given, settings, from_image):
    """Translates a request.

    Args:
        given: Its fields, a dict.
        settings: The settings of the server, see `a1111_api`; `override_settings` go before them.
        from_image: Whether it is one of img2img.

    Returns:
        A `Translation`.

    Raises:
        Problem: If a field is wrong, or changes images in a way that there is not here.
    """
    given = {name: value for name, value in given.items() if value is not None}
    model, clip_skip = override(settings, given.get("override_settings", {}))
    _refuse(given)
    call = {argument: given[field] for field, argument in ARGUMENTS.items() if field in given}
    call |= {"prompt_weighting": True, "long_prompts": "chunk", "clip_skip": clip_skip} | sampler_of(given)
    call.setdefault("prompt", "")
    inputs = _inputs(given) if from_image else []
    if from_image:
        call["strength"] = given.get("denoising_strength", STRENGTH)
    controls, images = a1111_controlnet.translate(given.get("alwayson_scripts"), given.get("init_images"))
    call |= {"controls": controls} if controls else {}
    inputs += images
    masked = any(it.name == "mask" for it in inputs)
    if masked and given.get("inpainting_mask_invert") in (1, True):
        call["mask_white"] = "keep"
    count = _whole("n_iter", given.get("n_iter", 1), 1, 100)
    size = _whole("batch_size", given.get("batch_size", 1), 1, 1024)
    call |= {"seed": _seed(given, "seed")} | _variation(given)
    return Translation(
        task="inpaint" if masked else "image_to_image" if from_image else "text_to_image",
        model=model,
        rounds=[call | seeds_alone(call, i * size) for i in range(count)],
        inputs=inputs,
        hires=_hires(given) if given.get("enable_hr") and not from_image else None,
        send_images=bool(given.get("send_images", True)),
        not_followed=_not_followed(given, masked),
    )


def _seed(given, field):
    seed = _whole(field, given.get(field, -1), -1, calls.LARGEST_SEED)
    return secrets.randbelow(calls.SEEDS) if seed == -1 else seed


def _variation(given):
    """The arguments that vary the seed."""
    found = {}
    if strength := given.get("subseed_strength", 0):
        found = {"variation_strength": strength, "variation_seed": _seed(given, "subseed")}
    sides = [given.get(f"seed_resize_from_{side}", -1) for side in "hw"]
    wanted = all(_whole("seed_resize_from_h and _w", side, -1, 2**15) > 0 for side in sides)
    return found | ({"seed_resize_from": sides} if wanted else {})


def override(settings, changes):
    """Returns the name of the model, or None, and the number of blocks to skip, by settings and changes of them.

    Raises:
        Problem: If a change is one of images that there is not here.
    """
    if not isinstance(changes, dict):
        raise Problem(f"`override_settings` must be an object. Received: {changes!r:.200}", 422, "override_settings")
    for name, value in changes.items():
        same = name in settings and settings[name] == value
        if not (same or name in ("sd_model_checkpoint", "CLIP_stop_at_last_layers") or OF_FILES.fullmatch(name)):
            raise Problem(f"The setting {name!r:.99} cannot be followed.", 422, "override_settings")
    settings = settings | changes
    skip = _whole("CLIP_stop_at_last_layers", settings["CLIP_stop_at_last_layers"], 1, 32) - 1
    return settings["sd_model_checkpoint"], skip


def sampler_of(given):
    """Returns the arguments `sampler`, `spacing` and `eta` that a request asks for, a dict."""
    name = given.get("sampler_name") or given.get("sampler_index")
    if not name:
        return {}
    try:
        sampler, spacing = names.from_a1111(name, given.get("scheduler") or None)
    except (TypeError, ValueError, AttributeError) as error:
        raise Problem(f"Sampler not found. {error}", 404, "sampler_name") from error
    found = {"sampler": sampler, "spacing": spacing, "eta": given.get("eta")}
    if not SAMPLERS[sampler].options.get("eta") and sampler != "ddim":
        del found["eta"]  # the others take none in A1111
    return found


def _refuse(given):
    scripts = given.get("alwayson_scripts") or {}
    if not isinstance(scripts, dict):
        raise Problem(f"`alwayson_scripts` must be an object. Received: {scripts!r:.200}", 422, "alwayson_scripts")
    others = {name: its for name, its in scripts.items() if not a1111_controlnet.is_controlnet(name)}
    if asked := [name for name, its in others.items() if not isinstance(its, dict) or any(its.get("args") or [])]:
        raise Problem(f"There are no scripts but controlnet. Received: {asked!r:.200}", 422, "alwayson_scripts")
    for name, values in WITHOUT_EFFECT.items():
        value = given.get(name)
        if value and value not in values:
            message = f"`{name}` is not supported, other than by {values!r}. Received: {value!r:.200}"
            raise Problem(message, 422, name)


def _not_followed(given, masked):
    known = {*ARGUMENTS, *FOLLOWED, *WITHOUT_EFFECT, *SILENT, *OF_MASKS}
    return sorted(
        [name for name, values in OF_MASKS.items() if masked and name in given and given[name] not in values]
        + [name[:99] for name in given if name not in known]
    )


def _inputs(given):
    images = given.get("init_images")
    if not (isinstance(images, list) and 1 <= len(images) <= uploads.MOST):
        message = f"Init image not found: `init_images` must be a list of 1 to {uploads.MOST} images in base64."
        raise Problem(message, 422, "init_images")
    inputs = [uploads.read_base64("image", image) for image in images]
    return inputs + ([uploads.read_base64("mask", given["mask"])] if given.get("mask") else [])


def _hires(given):
    """The arguments that the second pass of the hires fix has beside, or instead of, those of the first."""
    upscaler = given.get("hr_upscaler", "Lanczos")
    if upscaler not in HIRES_UPSCALERS:
        message = f"`hr_upscaler` must be Lanczos; latents are not enlarged. Received: {upscaler!r:.99}"
        raise Problem(message, 422, "hr_upscaler")
    second = {"strength": given.get("denoising_strength", HIRES_STRENGTH)}
    second |= {"prompt": given["hr_prompt"]} if given.get("hr_prompt") else {}
    second |= {"negative_prompt": given["hr_negative_prompt"]} if given.get("hr_negative_prompt") else {}
    second |= {"num_steps": given["hr_second_pass_steps"]} if given.get("hr_second_pass_steps") else {}
    scale = given.get("hr_scale", HIRES_SCALE)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 1 <= scale <= 8:
        raise Problem(f"`hr_scale` must be a number from 1 to 8. Received: {scale!r:.99}", 422, "hr_scale")
    sides = {"img_width": given.get("hr_resize_x"), "img_height": given.get("hr_resize_y")}
    return second | {"scale": scale, "sides": {name: side for name, side in sides.items() if side}}


def _whole(name, value, smallest, largest):
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise Problem(f"`{name}` must be an int from {smallest} to {largest}. Received: {value!r:.99}", 422, name)
    return value
