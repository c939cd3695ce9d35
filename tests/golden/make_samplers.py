"""Derives samplers.npz: what diffusers' schedulers make of a small linear model. Needs diffusers and torch.

    python tests/golden/make_samplers.py

diffusers' schedulers compute in float32. Here their modules see `float32` as `float64`, so that what is compared is the
method and not the rounding. Their code runs otherwise unchanged. Where diffusers cannot be, or should not be, the
measure (the table in samplers.py), it is asked something else that has the right answer:

    ddim, pndm; linspace, trailing     told the true length of every step
    pndm; v_prediction, and `sample`   given the noise that the prediction implies, as an epsilon model
      where it is refused
    leading; 1000 steps                without offset, as are the 999 steps of `LOG_SNR`
    `LOG_SNR`; leading, linspace       1000 steps with trailing spacing, which is all timesteps too
    lcm, tcd; more than 50 steps       distilled on as many timesteps as there are steps
    dpmpp_sde                          given noise with the correlation of a Brownian path
"""

import importlib
import json
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np

FIXTURE = Path(__file__).parent / "samplers.npz"
STEPS = (1, 2, 3, 9, 10, 25, 50, 999, 1000)

FINAL = {"final_sigmas_type": "sigma_min"}
CLASSES = {
    "ddim": ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("ddpm", "DDPMScheduler", {"clip_sample": False}),
    "pndm": ("pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("euler_discrete", "EulerDiscreteScheduler", {}),
    "euler_ancestral": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("heun_discrete", "HeunDiscreteScheduler", {}),
    "lms": ("lms_discrete", "LMSDiscreteScheduler", {}),
    "dpm2": ("k_dpm_2_discrete", "KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_sde": ("dpmsolver_sde", "DPMSolverSDEScheduler", {}),
    "dpmpp_2m": ("dpmsolver_multistep", "DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": (
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("unipc_multistep", "UniPCMultistepScheduler", {}),
    "dpmpp_3m": ("dpmsolver_multistep", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2m_sde_heun": (
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "dpmpp_singlestep": ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler", {}),
    "deis": ("deis_multistep", "DEISMultistepScheduler", {}),
    "lcm": ("lcm", "LCMScheduler", {}),
    "tcd": ("tcd", "TCDScheduler", {}),
}
LOG_SNR = (*("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_2m_sde_heun", "dpmpp_singlestep", "deis", "unipc"),)
DISTILLED = ("lcm", "tcd")
OF_ANOTHER_CLASS = {"dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m"}  # which has another row of its own
KARRAS = ("euler", "heun", "lms", "dpm2", "dpm2_ancestral", "dpmpp_sde", *LOG_SNR)
SPREADS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
# Arguments of `build` beside a name, a number of steps and a spacing → the options of the scheduler that mean them.
OPTIONS = [
    *(("dpmpp_2m", {"options": {"order": order}}, {"solver_order": order}) for order in (1, 3)),
    ("dpmpp_2m", {"options": {"heun": True}}, {"solver_type": "heun"}),
    ("dpmpp_2m", {"ends_clean": False}, {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", {"ends_clean": False, "options": {"euler_at_final": True}}, FINAL | {"euler_at_final": True}),
    (
        "dpmpp_3m",
        {"ends_clean": False, "options": {"lower_order_final": False}},
        FINAL | {"lower_order_final": False},
    ),
    ("dpmpp_2m", {"spread": "lu"}, {"use_lu_lambdas": True}),
    ("dpmpp_2m", {"last_timestep": 770}, {"lambda_min_clipped": -1.5}),
    *(("dpmpp_singlestep", {"options": {"order": order}}, {"solver_order": order}) for order in (1, 3)),
    ("dpmpp_singlestep", {"options": {"order": 3, "heun": True}}, {"solver_order": 3, "solver_type": "heun"}),
    ("dpmpp_singlestep", {"options": {"heun": True}}, {"solver_type": "heun"}),
    ("dpmpp_singlestep", {"ends_clean": False}, FINAL),
    (
        "dpmpp_singlestep",
        {"ends_clean": False, "options": {"order": 3, "lower_order_final": True}},
        FINAL | {"solver_order": 3, "lower_order_final": True},
    ),
    *(("deis", {"options": {"order": order}}, {"solver_order": order}) for order in (1, 3)),
    *(("unipc", {"options": {"order": order}}, {"solver_order": order}) for order in (1, 3)),
    *(
        (
            "unipc_bh1",
            {"ends_clean": False, "options": {"order": order}},
            FINAL | {"solver_order": order, "solver_type": "bh1"},
        )
        for order in (1, 2, 3)
    ),
    ("unipc", {"options": {"order": 3, "disable_corrector": [0, 2]}}, {"solver_order": 3, "disable_corrector": [0, 2]}),
    (
        "unipc",
        {"ends_clean": False, "options": {"lower_order_final": False}},
        FINAL | {"lower_order_final": False},
    ),
    ("euler", {"ends_clean": False}, FINAL),
    ("lcm", {"distilled_steps": 100}, {"original_inference_steps": 100}),
    ("lcm", {"options": {"timestep_scaling": 5.0}}, {"timestep_scaling": 5.0}),
    ("tcd", {"distilled_steps": 100}, {"original_inference_steps": 100}),
    ("ddim", {"ends_clean": True}, {"set_alpha_to_one": True}),
    ("pndm", {"ends_clean": True}, {"set_alpha_to_one": True}),
]
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
        spacings = ("lcm",) if name in DISTILLED else ("leading", "trailing", "linspace")
        spacings = ("linspace",) if name == "dpmpp_singlestep" else spacings
        for spacing in spacings + tuple(SPREADS) * (name in KARRAS):
            for num_steps in (2, 10, 50) if spacing in ("exponential", "beta") else STEPS:
                if name == "deis" and spacing in SPREADS and num_steps == 1:
                    continue  # stays where it is
                yield {"name": name, "num_steps": num_steps, "spacing": spacing}
            for prediction_type in ("v_prediction", "sample"):
                yield {"name": name, "num_steps": 9, "spacing": spacing, "prediction_type": prediction_type}
        if name not in ("pndm", "lms"):
            yield {"name": name, "num_steps": 10, "spacing": spacings[-1], "start": 4}
    yield {"name": "ddim", "num_steps": 10, "spacing": "leading", "eta": 0.7}
    yield {"name": "tcd", "num_steps": 10, "spacing": "lcm", "eta": 0.8}
    for name, arguments, _ in OPTIONS:
        for num_steps in (2, 3, 10, 25):
            yield {"name": name, "num_steps": num_steps, **arguments}


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


@cache
def module_of(file):
    """One of diffusers' modules; torchsde, which only draws noise, need not be there."""
    importlib.import_module("diffusers.schedulers.scheduling_utils")
    with mock.patch.dict(sys.modules, torchsde=mock.MagicMock()):
        return importlib.import_module(f"diffusers.schedulers.scheduling_{file}")


def scheduler(name, num_steps, spacing, prediction_type, **options):
    """diffusers' scheduler for a case, and whether the model's prediction must be made into noise for it."""
    file, class_name, config = CLASSES[name.removesuffix("_bh1")]
    convert = (name == "pndm" and prediction_type != "epsilon") or (
        name in ("euler_ancestral", "dpm2", "dpm2_ancestral", "dpmpp_sde") and prediction_type == "sample"
    )
    log_snr = name in LOG_SNR
    config = SCALED_LINEAR | config | options
    config["prediction_type"] = "epsilon" if convert else prediction_type
    every = log_snr and num_steps == 1000
    if spacing in SPREADS:
        config[SPREADS[spacing]] = True
    elif every and name != "dpmpp_singlestep":
        config["timestep_spacing"] = "trailing"
    elif name in DISTILLED:
        config.setdefault("original_inference_steps", max(50, num_steps))
    elif name != "dpmpp_singlestep":
        config["timestep_spacing"] = spacing
    if name != "dpmpp_singlestep":
        config["steps_offset"] = int(num_steps + log_snr < 1000)
    made = getattr(module_of(file), class_name)(**config)
    if name == "dpmpp_singlestep" and every and spacing == "linspace":
        made.set_timesteps(timesteps=list(range(999, -1, -1)))
    else:
        made.set_timesteps(num_steps)
    return made, convert


class _Brownian:
    """The noise of a path of which the second stage of a step sees more than the first."""

    def __init__(self):
        self.count, self.sigma = 0, None

    def __call__(self, sigma, next_sigma):
        import torch

        noise = step_noise(self.count)
        if sigma == self.sigma:
            share = float((sigma - self.next_sigma) / (sigma - next_sigma))
            noise = share**0.5 * step_noise(self.count - 1) + (1 - share) ** 0.5 * noise
        self.count, self.sigma, self.next_sigma = self.count + 1, sigma, next_sigma
        return torch.from_numpy(noise)


def reference(
    name,
    num_steps,
    spacing=None,
    prediction_type="epsilon",
    start=0,
    eta=None,
    levels=None,
    wide=True,
    config=None,
    **arguments,
):
    """Runs diffusers' scheduler on the model, from `START` times its own initial deviation or, later, as it is.

    Args:
        name, num_steps, spacing, prediction_type, start, eta, arguments: As for `build`.
        levels: The alphas and sigmas of each row, for the cases that need the prediction made into noise.
        wide: Whether to compute in float64; otherwise diffusers is left as it is.
        config: Further options of the scheduler.

    Returns:
        The latent that results, and the timesteps that the model was asked at.
    """
    import torch

    module = module_of(CLASSES[name.removesuffix("_bh1")][0])
    rows = iter(range(10_000))
    spacing = spacing or ("leading" if name in ("ddim", "pndm") else "linspace")
    if arguments:
        config = next(found for known, given, found in OPTIONS if known == name and given == arguments)
    with ExitStack() as stack:
        if wide:
            stack.enter_context(mock.patch.object(module, "torch", _Wide(torch)))
            stack.enter_context(mock.patch.object(module, "np", _Wide(np)))
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        noise = lambda shape, **_: torch.from_numpy(step_noise(next(rows)))  # noqa: E731
        stack.enter_context(mock.patch.object(module, "randn_tensor", noise, create=True))
        made, convert = scheduler(name, num_steps, spacing, prediction_type, **config or {})
        made.noise_sampler = _Brownian()
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
