"""Lists the options of diffusers' schedulers: of each class its defaults, what is supported, and what it means here."""

import math

# What a scheduler takes for the keys that its file leaves out.
DEFAULTS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon"}
_K_DIFFUSION_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED = {"beta_schedule": "scaled_linear", **_K_DIFFUSION_BETAS}
CLASS_DEFAULTS = {
    "DDIMScheduler": {"set_alpha_to_one": True},
    "DDIMParallelScheduler": {"set_alpha_to_one": True},
    "PNDMScheduler": {"skip_prk_steps": False},
    "HeunDiscreteScheduler": _K_DIFFUSION_BETAS,
    "KDPM2DiscreteScheduler": _K_DIFFUSION_BETAS,
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION_BETAS,
    "DPMSolverSDEScheduler": _K_DIFFUSION_BETAS,
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
}
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas")
FALLBACK = "DDIMScheduler"  # for a scheduler that is not known

# The options of each class's constructor beside those that all have: diffusers reads no other, though a file may hold
# the options of the scheduler that was there before. Of each the values that are supported, first the class's default.
_OFF, _FLAG, _ON_OR_OFF = (False, None), (False, True, None), (True, False)
_ZERO_SNR = {"rescale_betas_zero_snr": _FLAG}
_SPREAD = {"use_karras_sigmas": _FLAG, "use_exponential_sigmas": _FLAG, "use_beta_sigmas": _FLAG}
_END = {"final_sigmas_type": ("zero", "sigma_min")}
_EXTREMES = {"sigma_min": (None,), "sigma_max": (None,)}
_ORDER = {"solver_order": (2, 1, 3), "lower_order_final": _ON_OR_OFF}
_MULTISTEP = {**_SPREAD, **_ORDER, "thresholding": _OFF, "use_flow_sigmas": _OFF, "use_dynamic_shifting": _OFF}
_DPM = {
    **_MULTISTEP,
    **_END,
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),  # the last is dpmsolver++ to diffusers
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),  # the last three are midpoint to diffusers
    "lambda_min_clipped": (-math.inf, None, "-inf", "-Infinity"),  # or any number, see `scheduler_config`
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_DDIM = {"set_alpha_to_one": _ON_OR_OFF, "thresholding": _OFF, **_ZERO_SNR}
_DDPM = {"variance_type": ("fixed_small", None), "thresholding": _OFF, **_ZERO_SNR}
_FEW_STEPS = {**_ZERO_SNR, "thresholding": _OFF, "set_alpha_to_one": _ON_OR_OFF}
OPTIONS = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": {"set_alpha_to_one": (False, True), "skip_prk_steps": (True,)},
    "EulerDiscreteScheduler": {
        **_SPREAD,
        **_ZERO_SNR,
        **_END,
        **_EXTREMES,
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
    },
    "EulerAncestralDiscreteScheduler": _ZERO_SNR,
    "HeunDiscreteScheduler": _SPREAD,
    "LMSDiscreteScheduler": _SPREAD,
    "KDPM2DiscreteScheduler": _SPREAD,
    "KDPM2AncestralDiscreteScheduler": _SPREAD,
    "DPMSolverSDEScheduler": {**_SPREAD, "noise_sampler_seed": (None,)},
    "DPMSolverMultistepScheduler": {**_DPM, **_ZERO_SNR, "euler_at_final": _FLAG, "use_lu_lambdas": _FLAG},
    "DPMSolverSinglestepScheduler": {
        **_DPM,
        "algorithm_type": ("dpmsolver++", "deis"),
        "lower_order_final": (False, True),
    },
    "DEISMultistepScheduler": {
        **_MULTISTEP,
        "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),  # all of them deis to diffusers
        "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),  # all of them logrho to diffusers
    },
    "UniPCMultistepScheduler": {
        **_MULTISTEP,
        **_ZERO_SNR,
        **_END,
        **_EXTREMES,
        "solver_type": ("bh2", "bh1", "midpoint", "heun", "logrho"),  # the last three are bh2 to diffusers
        "predict_x0": (True,),
        "disable_corrector": ([],),  # or any list
        "solver_p": (None,),
        "shift_terminal": (None,),
    },
    "LCMScheduler": {**_FEW_STEPS, "original_inference_steps": (50,), "timestep_scaling": (10.0,)},  # or any numbers
    "TCDScheduler": {**_FEW_STEPS, "original_inference_steps": (50,)},  # or any number
}
# Options that are followed whatever their number or list is.
OPEN = {"lambda_min_clipped": (int, float), "disable_corrector": list, "original_inference_steps": int}
OPEN |= {"timestep_scaling": (int, float)}
WITHOUT_EFFECT = {  # on what Stable Diffusion's pipelines draw, or while another option is as it must be
    *("steps_offset", "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"),
    *("flow_shift", "time_shift_type", "set_alpha_to_one", "skip_prk_steps", "timestep_scaling"),
}
OWN_TIMESTEPS = ("LCMScheduler", "TCDScheduler", "DPMSolverSinglestepScheduler")  # have no timestep_spacing that counts
SPREAD_OPTIONS = {  # in the order in which diffusers asks
    "use_karras_sigmas": "karras",
    "use_lu_lambdas": "lu",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
# Options of a scheduler → keyword arguments of its solver.
SOLVER_OPTIONS = {
    "solver_order": "order",
    "lower_order_final": "lower_order_final",
    "euler_at_final": "euler_at_final",
    "disable_corrector": "disable_corrector",
    "timestep_scaling": "timestep_scaling",
}
# The value of solver_type that is a flag of the solver.
SOLVER_FLAGS = {
    "DPMSolverMultistepScheduler": "heun",
    "DPMSolverSinglestepScheduler": "heun",
    "UniPCMultistepScheduler": "bh1",
}
# (algorithm_type, solver_order) of a DPMSolverMultistepScheduler that has another name here.
VARIANTS = {
    ("dpmsolver++", 3): "dpmpp_3m",
    ("sde-dpmsolver++", 1): "dpmpp_2m_sde",
    ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
    ("sde-dpmsolver++", 3): "dpmpp_3m_sde",
}
