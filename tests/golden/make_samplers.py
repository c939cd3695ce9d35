"""Derives samplers.npz: what diffusers' schedulers make of a small linear model. Needs diffusers and torch.

    python tests/golden/make_samplers.py

diffusers' schedulers compute in float32. Here their modules see `float32` as `float64`, so that what is compared is the
method and not the rounding. Their code runs otherwise unchanged. Where diffusers cannot be, or should not be, the
measure (the table in samplers.py), it is asked something else that has the right answer:

    ddim, pndm; linspace, trailing     told the true length of every step
    pndm; v_prediction, and `sample`   given the noise that the prediction implies, as an epsilon model
      where it is refused
    leading; 1000 steps                without offset, as are the 999 steps of dpmpp_2m, dpmpp_2m_sde and unipc
    dpmpp_2m, dpmpp_2m_sde, unipc;     1000 steps with trailing spacing, which is all timesteps too
      leading, linspace
    lcm; more than 50 steps            distilled on as many timesteps as there are steps
"""

import importlib
import json
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np

FIXTURE = Path(__file__).parent / "samplers.npz"
STEPS = (1, 2, 3, 5, 9, 10, 20, 25, 27, 50, 100, 999, 1000)

CLASSES = {
    "ddim": ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("ddpm", "DDPMScheduler", {"clip_sample": False}),
    "pndm": ("pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("euler_discrete", "EulerDiscreteScheduler", {}),
    "euler_ancestral": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("heun_discrete", "HeunDiscreteScheduler", {}),
    "lms": ("lms_discrete", "LMSDiscreteScheduler", {}),
    "dpm2": ("k_dpm_2_discrete", "KDPM2DiscreteScheduler", {}),
    "dpmpp_2m": ("dpmsolver_multistep", "DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": (
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("unipc_multistep", "UniPCMultistepScheduler", {}),
    "lcm": ("lcm", "LCMScheduler", {}),
}
KARRAS = ("euler", "heun", "lms", "dpm2", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

SCHEDULES = (
    SCALED_LINEAR,
    SCALED_LINEAR | {"rescale_betas_zero_snr": True},
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    SCALED_LINEAR | {"trained_betas": [0.01 * (i + 1) ** 0.5 for i in range(60)]},
)

SAMPLED = [0, 1, 30, -2, -1]

START = np.array([[0.3, -1.1, 0.8]])
MIXING = np.array([[0.21, -0.34, 0.11], [0.28, 0.17, -0.23], [-0.05, 0.31, 0.12]])


def model(x, t):
    """A linear network: it mixes what it is given, differently at every timestep."""
    return np.cos(t / 400) * x @ MIXING + np.sin(t / 150 + np.arange(3.0))


def step_noise(row):
    return np.cos(1.7 * row + np.array([[0.0, 2.0, 4.0]])) * 1.4


def to_noise(prediction_type, prediction, x, alpha, sigma):
    return {
        "epsilon": prediction,
        "v_prediction": alpha * prediction + sigma * x,
        "sample": (x - alpha * prediction) / sigma,
    }[prediction_type]


def cases():
    """Yields the arguments of `build`, and of `reference`, of everything that is compared."""
    for name in CLASSES:
        spacings = ("lcm",) if name == "lcm" else ("leading", "trailing", "linspace")
        for spacing in spacings + ("karras",) * (name in KARRAS):
            for num_steps in STEPS:
                yield {"name": name, "num_steps": num_steps, "spacing": spacing}
            for prediction_type in ("v_prediction", "sample"):
                yield {"name": name, "num_steps": 9, "spacing": spacing, "prediction_type": prediction_type}
        if name not in ("pndm", "lms"):
            yield {"name": name, "num_steps": 10, "spacing": spacings[-1], "start": 4}
    yield {"name": "ddim", "num_steps": 10, "spacing": "leading", "eta": 0.7}
    yield {"name": "ddim", "num_steps": 10, "spacing": "leading", "set_alpha_to_one": True}
    yield {"name": "pndm", "num_steps": 10, "spacing": "leading", "set_alpha_to_one": True}


class _Wide:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


class _Stride(int):
    """A number of steps that makes every step as long as it is told."""

    def __rfloordiv__(self, num_train_timesteps):
        return int(self)


def scheduler(name, num_steps, spacing, prediction_type, **options):
    """diffusers' scheduler for a case, and whether the model's prediction must be made into noise for it."""
    file, class_name, config = CLASSES[name]
    convert = (name == "pndm" and prediction_type != "epsilon") or (
        name in ("euler_ancestral", "dpm2") and prediction_type == "sample"
    )
    log_snr = name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
    config = SCALED_LINEAR | config | options
    config["prediction_type"] = "epsilon" if convert else prediction_type
    if spacing == "karras":
        config["use_karras_sigmas"] = True
    elif log_snr and num_steps == 1000:
        config["timestep_spacing"] = "trailing"
    elif name == "lcm":
        config["original_inference_steps"] = max(50, num_steps)
    else:
        config["timestep_spacing"] = spacing
    config["steps_offset"] = int(num_steps + log_snr < 1000)
    made = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{file}"), class_name)(**config)
    made.set_timesteps(num_steps)
    return made, convert


def reference(
    name, num_steps, spacing, prediction_type="epsilon", start=0, eta=None, levels=None, wide=True, **options
):
    """Runs diffusers' scheduler on the model, from `START` times its own initial deviation or, later, as it is.

    Args:
        name, num_steps, spacing, prediction_type, start, eta: As for `build`.
        levels: The alphas and sigmas of each row, for the cases that need the prediction made into noise.
        wide: Whether to compute in float64; otherwise diffusers is left as it is.
        options: Further configuration of the scheduler.

    Returns:
        The latent that results, and the timesteps that the model was asked at.
    """
    import torch

    module = importlib.import_module(f"diffusers.schedulers.scheduling_{CLASSES[name][0]}")
    rows = iter(range(10_000))
    with ExitStack() as stack:
        if wide:
            stack.enter_context(mock.patch.object(module, "torch", _Wide(torch)))
            stack.enter_context(mock.patch.object(module, "np", _Wide(np)))
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        noise = lambda shape, **_: torch.from_numpy(step_noise(next(rows)))  # noqa: E731
        stack.enter_context(mock.patch.object(module, "randn_tensor", noise, create=True))
        made, convert = scheduler(name, num_steps, spacing, prediction_type, **options)
        first = start * made.order
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(first)
        timesteps = made.timesteps[first:].numpy().astype("float64")
        path = np.unique(np.append(timesteps, -1))[::-1]
        x = torch.from_numpy(START) * made.init_noise_sigma
        if start:
            x = torch.from_numpy(START) / made.scale_model_input(torch.ones(1), made.timesteps[first])
        for row, timestep in enumerate(made.timesteps[first:]):
            if name in ("ddim", "pndm") and spacing in ("linspace", "trailing"):
                here = max(row - 1, 0) if name == "pndm" else row
                made.num_inference_steps = _Stride(path[here] - path[here + 1])
            scaled = made.scale_model_input(x, timestep)
            prediction = model(scaled.numpy(), float(timestep))
            if convert:
                prediction = to_noise(prediction_type, prediction, scaled.numpy(), levels[0][row], levels[1][row])
            arguments = {} if eta is None else {"eta": eta}
            x = made.step(torch.from_numpy(prediction), timestep, x, **arguments).prev_sample
    return x.numpy(), timesteps


def schedule(**config):
    """alphas_cumprod of diffusers' DDIM scheduler, in float64."""
    import torch

    module = importlib.import_module("diffusers.schedulers.scheduling_ddim")
    with mock.patch.object(module, "torch", _Wide(torch)):
        return module.DDIMScheduler(**config).alphas_cumprod.numpy()


def main():
    from keras_diffusion.sampling import samplers

    results = {}
    for case in cases():
        table = samplers.build(**case)
        results[json.dumps(case)] = reference(**case, levels=(table.alphas, table.sigmas))[0][0]
    schedules = {json.dumps(config): schedule(**config)[SAMPLED] for config in SCHEDULES}
    np.savez_compressed(
        FIXTURE,
        cases=list(results),
        results=np.array(list(results.values())),
        schedules=list(schedules),
        alphas_cumprod=np.array(list(schedules.values())),
    )


if __name__ == "__main__":
    main()
