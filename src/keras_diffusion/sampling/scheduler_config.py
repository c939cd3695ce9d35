"""Reads the `scheduler/scheduler_config.json` of a diffusers folder."""

import logging
import math

import numpy as np

from keras_diffusion.sampling.names import resolve
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.schedules import noise_schedule

logger = logging.getLogger(__name__)

# What a scheduler takes for the keys that its file leaves out.
DEFAULTS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon"}
CLASS_DEFAULTS = {
    "DDIMScheduler": {"set_alpha_to_one": True},
    "PNDMScheduler": {"skip_prk_steps": False},
    "HeunDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2DiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "LCMScheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas")
FALLBACK = "DDIMScheduler"  # for a scheduler that is not known

# The options of each class's constructor beside those that all have: diffusers reads no other, though a file may hold
# the options of the scheduler that was there before. Of each the values that are supported, first the class's default.
_OFF, _FLAG = (False, None), (False, True, None)
_ZERO_SNR = {"rescale_betas_zero_snr": _FLAG}
_SPREAD = {"use_karras_sigmas": _FLAG, "use_exponential_sigmas": _OFF, "use_beta_sigmas": _OFF}
_EXTREMES = {"final_sigmas_type": ("zero",), "sigma_min": (None,), "sigma_max": (None,)}
_MULTISTEP = {
    **_SPREAD,
    **_ZERO_SNR,
    "solver_order": (2,),
    "thresholding": _OFF,
    "lower_order_final": (True,),
    "use_flow_sigmas": _OFF,
    "use_dynamic_shifting": _OFF,
    "final_sigmas_type": ("zero",),
}
OPTIONS = {
    "DDIMScheduler": {"set_alpha_to_one": (True, False), "thresholding": _OFF, **_ZERO_SNR},
    "DDPMScheduler": {"variance_type": ("fixed_small", None), "thresholding": _OFF, **_ZERO_SNR},
    "PNDMScheduler": {"set_alpha_to_one": (False, True), "skip_prk_steps": (True,)},
    "EulerDiscreteScheduler": {
        **_SPREAD,
        **_ZERO_SNR,
        **_EXTREMES,
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
    },
    "EulerAncestralDiscreteScheduler": _ZERO_SNR,
    "HeunDiscreteScheduler": _SPREAD,
    "LMSDiscreteScheduler": _SPREAD,
    "KDPM2DiscreteScheduler": _SPREAD,
    "DPMSolverMultistepScheduler": {
        **_MULTISTEP,
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),  # the last is dpmsolver++ to diffusers
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # all of them midpoint to diffusers
        "euler_at_final": _OFF,
        "use_lu_lambdas": _OFF,
        "lambda_min_clipped": (-math.inf, None, "-inf", "-Infinity"),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    },
    "UniPCMultistepScheduler": {
        **_MULTISTEP,
        **_EXTREMES,
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # all of them bh2 to diffusers
        "predict_x0": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
        "shift_terminal": (None,),
    },
    "LCMScheduler": {
        **_ZERO_SNR,
        "set_alpha_to_one": (True, False),
        "thresholding": _OFF,
        "original_inference_steps": (50,),
        "timestep_scaling": (10.0,),
    },
}
WITHOUT_EFFECT = {  # on what Stable Diffusion's pipelines draw, or while another option is as it must be
    *("steps_offset", "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"),
    *("flow_shift", "time_shift_type", "set_alpha_to_one", "skip_prk_steps"),
}
SMALLEST_SIGNAL = 2.0**-24  # what diffusers leaves of zero terminal SNR to the solvers that divide by it


def from_scheduler_config(config):
    """Returns the sampler that a diffusers scheduler configuration describes.

    As in diffusers' Stable Diffusion pipelines, `steps_offset` is 1 and `clip_sample` is off whatever the file says. Of
    an option that the scheduler has not, such as one that the scheduler before left in the file, nothing is taken; a
    scheduler that is not known becomes DDIM on the same noise schedule. Both are logged as warnings.

    Args:
        config: dict, the contents of a `scheduler_config.json`.

    Returns:
        (name, arguments): a name in `SAMPLERS`, and the keyword arguments that `build` needs besides `num_steps`.

    Raises:
        ValueError: if the scheduler is one for other models (flow matching) or not named, or the value of one of its
            options is not supported.
    """
    kind = _known(config)
    options = OPTIONS[kind]
    config = DEFAULTS | CLASS_DEFAULTS.get(kind, {}) | config
    if kind != config["_class_name"]:  # of another class, whose options mean nothing here
        config = {key: config[key] for key in (*SCHEDULE, *_ZERO_SNR, "prediction_type") if key in config}
    for key, values in options.items():
        if config.get(key, values[0]) not in values:
            raise ValueError(
                f"The scheduler option {key} of {kind} must be {' or '.join(map(repr, values))}; change it in "
                f"scheduler_config.json, or put another scheduler there. Received: {key}={repr(config[key])[:200]}"
            )
    if left := {key: value for key, value in config.items() if _is_left_behind(key, value, options)}:
        logger.warning("%s has no such options, they are ignored: %.300s", kind, left)
    name, _ = resolve(kind)
    if "algorithm_type" in options and config.get("algorithm_type") == "sde-dpmsolver++":
        name = "dpmpp_2m_sde"
    alphas_cumprod = noise_schedule(
        **{key: config[key] for key in SCHEDULE if key in config},
        rescale_betas_zero_snr="rescale_betas_zero_snr" in options and bool(config.get("rescale_betas_zero_snr")),
    )
    if SAMPLERS[name].spacing == "linspace":
        alphas_cumprod = np.maximum(alphas_cumprod, SMALLEST_SIGNAL)
    return name, {
        "prediction_type": config["prediction_type"],
        "spacing": None if name == "lcm" else config.get("timestep_spacing"),
        "karras": "use_karras_sigmas" in options and bool(config.get("use_karras_sigmas")),
        "alphas_cumprod": alphas_cumprod,
        "set_alpha_to_one": config.get("set_alpha_to_one") if name in ("ddim", "pndm") else None,
    }


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
    """Whether a key that a file holds, and the class does not read, would change what another class draws."""
    if key.startswith("_") or key in {*SCHEDULE, *DEFAULTS, "timestep_spacing", *WITHOUT_EFFECT, *options}:
        return False
    return not any(value == others[key][0] for others in OPTIONS.values() if key in others)
