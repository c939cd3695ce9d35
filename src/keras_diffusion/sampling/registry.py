"""Lists the samplers: a solver each, and how diffusers' Stable Diffusion pipelines run it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_diffusion.sampling import dpm_solvers, solvers, two_stage


@dataclass(frozen=True)
class Sampler:
    """Describes a solver, and how diffusers' Stable Diffusion pipelines run it: one row of `SAMPLERS`.

    Args:
        solver: Function of `Levels` and of `options` that returns a `Recurrence`.
        estimate: The quantity that h estimates, "noise" or "denoised".
        spacing: Its default spacing.
        options: Keyword arguments of the solver. If `eta` is among them, callers may choose the share of fresh noise.
        ends_clean: Whether the last step ends at a clean latent; otherwise at the level of timestep 0.
        extra_points: Grid points spent on the clean end, 0 or 1.
        rounded_spacings: Spacings whose timesteps are made whole, as `schedules.TO_WHOLE` does.
        extremes: Those of levels that are spread anew: of the timesteps "visited", or of those "trained".
        starts_at_sigma: Whether the starting noise has the deviation sigma of the first level, instead of 1; leading
            spacing always has 1.
        evaluations: How many times a step asks the network.
        spellings: Its other names, see `names.py`: first that in A1111's menu, if it is there, then those in
            k-diffusion, ComfyUI, InvokeAI and diffusers.
    """

    solver: Callable
    estimate: str
    spacing: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ends_clean: bool = True
    extra_points: int = 0
    rounded_spacings: tuple = ("linspace", "karras")
    extremes: str = "visited"
    starts_at_sigma: bool = False
    evaluations: int = 1
    spellings: tuple = ()


# What the samplers of a family have in common.
DDPM = {"estimate": "denoised", "spacing": "leading"}
DISTILLED = {"estimate": "denoised", "spacing": "lcm"}
K_DIFFUSION = {"estimate": "noise", "spacing": "linspace", "rounded_spacings": (), "starts_at_sigma": True}
TWO_STAGE = {**K_DIFFUSION, "evaluations": 2}
DPM2 = {**TWO_STAGE, "rounded_spacings": ("karras",)}
LOG_SNR = {
    "estimate": "denoised",
    "spacing": "linspace",
    "extra_points": 1,
    "rounded_spacings": ("linspace", "karras", "exponential", "beta", "lu"),
    "extremes": "trained",
}
DETERMINISTIC, STOCHASTIC = {"eta": 0.0}, {"eta": 1.0}

# fmt: off
SAMPLERS = {
    "ddim": Sampler(
        solvers.ddim, **DDPM, options=DETERMINISTIC, ends_clean=False,
        spellings=("DDIM", "DDIMScheduler", "DDIMParallelScheduler"),
    ),
    "ddpm": Sampler(
        solvers.ddim, **DDPM, options=STOCHASTIC,
        spellings=("DDPM", "DDPMScheduler", "DDPMParallelScheduler"),
    ),
    "pndm": Sampler(
        solvers.pndm, **DDPM | {"estimate": "noise"}, ends_clean=False,
        spellings=("PLMS", "PNDMScheduler"),
    ),
    "keras_cv": Sampler(
        solvers.ddim, **DDPM | {"spacing": "keras_cv"}, options=DETERMINISTIC,
        spellings=("KerasCV",),
    ),
    "euler": Sampler(
        solvers.euler, **K_DIFFUSION, options=DETERMINISTIC,
        spellings=("Euler", "k_euler", "EulerDiscreteScheduler"),
    ),
    "euler_ancestral": Sampler(
        solvers.euler, **K_DIFFUSION, options=STOCHASTIC,
        spellings=("Euler a", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
    ),
    "heun": Sampler(
        two_stage.heun, **TWO_STAGE,
        spellings=("Heun", "k_heun", "HeunDiscreteScheduler"),
    ),
    "lms": Sampler(
        solvers.lms, **K_DIFFUSION,
        spellings=("LMS", "k_lms", "LMSDiscreteScheduler"),
    ),
    "ipndm": Sampler(
        solvers.ipndm, **K_DIFFUSION,
        spellings=("iPNDM",),
    ),
    "dpm2": Sampler(
        two_stage.dpm2, **DPM2, options=DETERMINISTIC,
        spellings=("DPM2", "k_dpm_2", "kdpm_2", "KDPM2DiscreteScheduler"),
    ),
    "dpm2_ancestral": Sampler(
        two_stage.dpm2, **DPM2, options=STOCHASTIC,
        spellings=(
            "DPM2 a", "k_dpm_2_a", "k_dpm_2_ancestral", "kdpm_2_a", "kdpm_2_ancestral",
            "KDPM2AncestralDiscreteScheduler",
        ),
    ),
    "dpmpp_2s": Sampler(
        two_stage.dpmpp_2s, **TWO_STAGE | {"estimate": "denoised"}, options=DETERMINISTIC,
        spellings=("DPM++ 2S", "k_dpmpp_2s"),
    ),
    "dpmpp_2s_ancestral": Sampler(
        two_stage.dpmpp_2s, **TWO_STAGE | {"estimate": "denoised"}, options=STOCHASTIC,
        spellings=("DPM++ 2S a", "k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
    ),
    "dpmpp_sde": Sampler(
        two_stage.dpmpp_sde, **TWO_STAGE | {"estimate": "denoised"}, options=STOCHASTIC,
        spellings=("DPM++ SDE", "k_dpmpp_sde", "dpmpp_sde_gpu", "DPMSolverSDEScheduler"),
    ),
    "dpmpp_2m": Sampler(
        dpm_solvers.dpmpp, **LOG_SNR, options=DETERMINISTIC,
        spellings=("DPM++ 2M", "k_dpmpp_2m", "DPM-Solver++(2M)", "DPMSolverMultistepScheduler"),
    ),
    "dpmpp_2m_sde": Sampler(
        dpm_solvers.dpmpp, **LOG_SNR, options=STOCHASTIC,
        spellings=("DPM++ 2M SDE", "k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    ),
    "dpmpp_2m_sde_heun": Sampler(
        dpm_solvers.dpmpp, **LOG_SNR, options=STOCHASTIC | {"heun": True},
        spellings=("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
    ),
    "dpmpp_3m": Sampler(
        dpm_solvers.dpmpp, **LOG_SNR, options=DETERMINISTIC | {"order": 3},
        spellings=("DPM++ 3M", "DPM-Solver++(3M)"),
    ),
    "dpmpp_3m_sde": Sampler(
        dpm_solvers.dpmpp, **LOG_SNR, options=STOCHASTIC | {"order": 3, "heun": True, "lower_order_final": False},
        spellings=("DPM++ 3M SDE", "k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
    ),
    "dpmpp_singlestep": Sampler(
        dpm_solvers.singlestep, **LOG_SNR,
        spellings=("DPM++ singlestep", "DPMSolverSinglestepScheduler"),
    ),
    "deis": Sampler(
        dpm_solvers.deis, **LOG_SNR | {"estimate": "noise"}, ends_clean=False,
        spellings=("DEIS", "DEISMultistepScheduler"),
    ),
    "unipc": Sampler(
        dpm_solvers.unipc, **LOG_SNR,
        spellings=("UniPC", "uni_pc_bh2", "UniPCMultistepScheduler"),
    ),
    "unipc_bh1": Sampler(
        dpm_solvers.unipc, **LOG_SNR, options={"bh1": True},
        spellings=("UniPC bh1",),
    ),
    "lcm": Sampler(
        solvers.lcm, **DISTILLED,
        spellings=("LCM", "LCMScheduler"),
    ),
    "tcd": Sampler(
        solvers.tcd, **DISTILLED, options={"eta": 0.3}, ends_clean=False,
        spellings=("TCD", "TCDScheduler"),
    ),
}
# fmt: on
