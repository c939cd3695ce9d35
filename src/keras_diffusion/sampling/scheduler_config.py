"""Reads the `scheduler/scheduler_config.json` of a diffusers folder."""

import logging
import math

import numpy as np

from keras_diffusion.sampling.names import resolve
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.scheduler_options import (
    CLASS_DEFAULTS,
    DEFAULTS,
    FALLBACK,
    OPEN,
    OPTIONS,
    OWN_TIMESTEPS,
    SCHEDULE,
    SOLVER_FLAGS,
    SOLVER_OPTIONS,
    SPREAD_OPTIONS,
    VARIANTS,
    WITHOUT_EFFECT,
)
from keras_diffusion.sampling.schedules import noise_schedule

logger = logging.getLogger(__name__)

SMALLEST_SIGNAL = 2.0**-24  # what diffusers leaves of zero terminal SNR to the solvers that divide by it


def from_scheduler_config(config):
    """Returns the sampler that a diffusers scheduler configuration describes.

    As in diffusers' Stable Diffusion pipelines, `steps_offset` is 1 and `clip_sample` is off whatever the file says. Of
    an option that the scheduler has not, such as one that the scheduler before left in the file, nothing is taken; a
    scheduler that is not known becomes DDIM on the same noise schedule. Both are logged as warnings. Options that are
    not supported are a warning too, and an error only where this very sampler is to draw.

    Args:
        config: dict, the contents of a `scheduler_config.json`.

    Returns:
        (name, arguments): a name in `SAMPLERS`, and the keyword arguments that `build` needs besides `num_steps`.

    Raises:
        ValueError: If the scheduler is one for other models (flow matching) or not named, or its noise schedule or
            prediction type is not known.
    """
    kind = _known(config)
    options = OPTIONS[kind]
    config = DEFAULTS | CLASS_DEFAULTS.get(kind, {}) | config
    stands_in = kind != config["_class_name"]
    if stands_in:  # the options of another class mean nothing here
        config = {key: config[key] for key in (*SCHEDULE, "rescale_betas_zero_snr", "prediction_type") if key in config}
    if left := {key: value for key, value in config.items() if _is_left_behind(key, value, options)}:
        logger.warning("%s has no such options, they are ignored: %.300s", kind, left)
    given = {key: config.get(key, values[0]) for key, values in options.items()}
    variant = given.get("algorithm_type"), given.get("solver_order")
    name = (kind == "DPMSolverMultistepScheduler" and VARIANTS.get(variant)) or resolve(kind)[0]
    alphas_cumprod = noise_schedule(
        **{key: config[key] for key in SCHEDULE if key in config},
        rescale_betas_zero_snr=bool(given.get("rescale_betas_zero_snr")),
    )
    if SAMPLERS[name].spacing == "linspace":
        alphas_cumprod = np.maximum(alphas_cumprod, SMALLEST_SIGNAL)
    refusal = _refusal(kind, config, given)
    if refusal:
        logger.warning("Images can be drawn only by a call that gives `sampler`. %s", refusal)
    arguments = {
        "prediction_type": config["prediction_type"],
        "spacing": None if kind in OWN_TIMESTEPS else config.get("timestep_spacing"),
        "spread": next((spread for key, spread in SPREAD_OPTIONS.items() if given.get(key)), None),
        "alphas_cumprod": alphas_cumprod,
        "ends_clean": None if stands_in else _ends_clean(name, given),
        "last_timestep": None if refusal else _last_timestep(given.get("lambda_min_clipped"), alphas_cumprod),
        "distilled_steps": given.get("original_inference_steps"),
        "options": _solver_options(kind, given),
        "refusal": refusal,
    }
    return name, {key: value for key, value in arguments.items() if value is not None}


def _solver_options(kind, given):
    """Returns the keyword arguments of the solver that a scheduler's options mean, or None."""
    options = {SOLVER_OPTIONS[key]: value for key, value in given.items() if key in SOLVER_OPTIONS}
    if flag := SOLVER_FLAGS.get(kind):
        options[flag] = given["solver_type"] == flag
    return options or None


def _ends_clean(name, given):
    """Tells whether the last step ends at a clean latent; None leaves it to the sampler."""
    if name in ("ddim", "pndm"):
        return bool(given["set_alpha_to_one"])
    return False if given.get("final_sigmas_type") == "sigma_min" else None


def _last_timestep(lambda_min, alphas_cumprod):
    """Returns the noisiest timestep whose half log-SNR is at least `lambda_min`; None if that is all of them."""
    if not isinstance(lambda_min, int | float) or not math.isfinite(lambda_min):
        return None
    log_snrs = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    return len(log_snrs) - 1 - int(np.searchsorted(log_snrs[::-1], lambda_min))


def _refusal(kind, config, given):
    """Returns why a scheduler cannot be followed, or None."""
    problems = [
        f"The scheduler option {key} of {kind} must be {' or '.join(map(repr, OPTIONS[kind][key]))}. "
        f"Received: {key}={value!r:.200}"
        for key, value in given.items()
        if not _is_supported(value, OPTIONS[kind][key], OPEN.get(key))
    ]
    if len(spreads := [key for key in SPREAD_OPTIONS if given.get(key)]) > 1:
        problems.append(f"A scheduler spreads its noise levels in one way. Received: {' and '.join(spreads)}")
    if config.get("timestep_spacing") == "trailing" and _is_number(given.get("lambda_min_clipped")):
        value = given["lambda_min_clipped"]
        problems.append(f"Timesteps are not both trailing and clipped. Received: lambda_min_clipped={value}")
    if not problems:
        return None
    advice = "Change scheduler_config.json, or give `sampler`, one of those in `SAMPLERS`."
    return " ".join([*problems[:3], advice])


def _is_supported(value, values, kind):
    """Tells whether an option has a supported value; an open option takes any number or list."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, int) for item in value)
    return value in values or (kind is not None and _is_number(value) and isinstance(value, kind))


def _is_number(value):
    """Tells whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _known(config):
    """The class of a configuration, or the one that stands in for it."""
    kind = config.get("_class_name")
    if isinstance(kind, str) and kind in OPTIONS:
        return kind
    if not isinstance(kind, str) or "Flow" in kind or not {"beta_start", "beta_schedule", "trained_betas"} & {*config}:
        raise ValueError(
            f"A scheduler must be {', '.join(OPTIONS)}, or another one with beta_start, beta_schedule or "
            f"trained_betas for Stable Diffusion. Received: _class_name={kind!r:.200}"
        )
    logger.warning(
        "The scheduler %.200s is not known; images are drawn by DDIM on its noise schedule unless a call gives "
        "`sampler`, one of %s.",
        kind,
        ", ".join(SAMPLERS),
    )
    return FALLBACK


def _is_left_behind(key, value, options):
    """Tells whether a key that the class of a file does not read would change the images of another class."""
    if key.startswith("_") or key in {*SCHEDULE, *DEFAULTS, "timestep_spacing", *WITHOUT_EFFECT, *options}:
        return False
    return not any(value == others[key][0] for others in OPTIONS.values() if key in others)
