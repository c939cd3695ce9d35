"""Reads the `scheduler/scheduler_config.json` of a diffusers folder."""

import numpy as np

from keras_diffusion.sampling.samplers import SAMPLERS, resolve
from keras_diffusion.sampling.schedules import noise_schedule

# What a scheduler takes for the keys that its file leaves out.
DEFAULTS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon"}
CLASS_DEFAULTS = {
    "DDIMScheduler": {"set_alpha_to_one": True},
    "HeunDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2DiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "LCMScheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas", "rescale_betas_zero_snr")

# The options of which only some values are supported.
SUPPORTED = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "disable_corrector": ([],),
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    "lower_order_final": (True,),
    "original_inference_steps": (50,),
    "predict_x0": (True,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "skip_prk_steps": (True,),
    "solver_order": (2,),
    "solver_type": ("bh2", "midpoint", "logrho"),
    "thresholding": (False,),
    "timestep_scaling": (10.0,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "variance_type": ("fixed_small", None),
}
SMALLEST_SIGNAL = 2.0**-24  # what diffusers leaves of zero terminal SNR to the solvers that divide by it


def from_scheduler_config(config):
    """Returns the sampler that a diffusers scheduler configuration describes.

    As in diffusers' Stable Diffusion pipelines, `steps_offset` is 1 and `clip_sample` is off whatever the file says.

    Args:
        config: dict, the contents of a `scheduler_config.json`.

    Returns:
        (name, arguments): a name in `SAMPLERS`, and the keyword arguments that `build` needs besides `num_steps`.

    Raises:
        ValueError: if the scheduler, or the value of one of its options, is not supported.
    """
    kind = config.get("_class_name")
    name, _ = resolve(kind)
    config = DEFAULTS | CLASS_DEFAULTS.get(kind, {}) | config
    for key, values in SUPPORTED.items():
        if config.get(key, values[0]) not in values:
            raise ValueError(
                f"The scheduler option {key} must be {' or '.join(map(repr, values))}; for anything else choose a "
                f"sampler by name. Received: {key}={repr(config[key])[:200]}"
            )
    if config.get("algorithm_type") == "sde-dpmsolver++":
        name = "dpmpp_2m_sde"
    alphas_cumprod = noise_schedule(**{key: config[key] for key in SCHEDULE if key in config})
    if SAMPLERS[name].spacing == "linspace":
        alphas_cumprod = np.maximum(alphas_cumprod, SMALLEST_SIGNAL)
    return name, {
        "prediction_type": config["prediction_type"],
        "spacing": None if name == "lcm" else config.get("timestep_spacing"),
        "karras": bool(config.get("use_karras_sigmas")),
        "alphas_cumprod": alphas_cumprod,
        "set_alpha_to_one": config.get("set_alpha_to_one") if name in ("ddim", "pndm") else None,
    }
