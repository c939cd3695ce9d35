"""Lists the samplers: a solver each, and how diffusers' Stable Diffusion pipelines run it."""

from collections.abc import Callable
from dataclasses import dataclass

from keras_diffusion.sampling import solvers


@dataclass(frozen=True)
class Sampler:
    """Describes a solver, and how diffusers' Stable Diffusion pipelines run it: one row of `SAMPLERS`.

    Args:
        solver: Function of `Levels` (and eta) that returns a `Recurrence`.
        estimate: The quantity that h estimates, "noise" or "denoised".
        spacing: Its default spacing.
        eta: Default share of the ancestral noise it adds, 0 to 1; None if the solver takes no eta.
        ends_clean: Whether the last step ends at a clean latent; otherwise at the level of timestep 0.
        extra_points: Grid points spent on the clean end, 0 or 1.
        rounded_spacings: Spacings whose timesteps are rounded.
        karras: Extremes of its Karras levels: those of the timesteps "visited" or those "trained".
        starts_at_sigma: Whether the starting noise has the deviation sigma of the first level, instead of 1; leading
            spacing always has 1.
        spellings: Its other names: in A1111's menu, if it is there, in k-diffusion and ComfyUI, and in diffusers.
    """

    solver: Callable
    estimate: str
    spacing: str
    eta: float | None = None
    ends_clean: bool = True
    extra_points: int = 0
    rounded_spacings: tuple = ("linspace", "karras")
    karras: str = "visited"
    starts_at_sigma: bool = False
    spellings: tuple = ()


# What the samplers of a family have in common.
ANCESTORS = {"spacing": "leading"}  # DDPM, and what was made for it
K_DIFFUSION = {"estimate": "noise", "spacing": "linspace", "rounded_spacings": (), "starts_at_sigma": True}
LOG_SNR = {"estimate": "denoised", "spacing": "linspace", "extra_points": 1, "karras": "trained"}

SAMPLERS = {
    "ddim": Sampler(
        solvers.ddim, "denoised", **ANCESTORS, eta=0.0, ends_clean=False, spellings=("DDIM", "DDIMScheduler")
    ),
    "ddpm": Sampler(solvers.ddim, "denoised", **ANCESTORS, eta=1.0, spellings=("DDPM", "DDPMScheduler")),
    "pndm": Sampler(solvers.pndm, "noise", **ANCESTORS, ends_clean=False, spellings=("PLMS", "PNDMScheduler")),
    "keras_cv": Sampler(solvers.ddim, "denoised", "keras_cv", eta=0.0, spellings=("KerasCV",)),
    "euler": Sampler(solvers.euler, **K_DIFFUSION, eta=0.0, spellings=("Euler", "k_euler", "EulerDiscreteScheduler")),
    "euler_ancestral": Sampler(
        solvers.euler,
        **K_DIFFUSION,
        eta=1.0,
        spellings=("Euler a", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
    ),
    "heun": Sampler(solvers.heun, **K_DIFFUSION, spellings=("Heun", "k_heun", "HeunDiscreteScheduler")),
    "lms": Sampler(solvers.lms, **K_DIFFUSION, spellings=("LMS", "k_lms", "LMSDiscreteScheduler")),
    "dpm2": Sampler(
        solvers.dpm2,
        **K_DIFFUSION | {"rounded_spacings": ("karras",)},
        spellings=("DPM2", "k_dpm_2", "KDPM2DiscreteScheduler"),
    ),
    "dpmpp_2m": Sampler(
        solvers.dpmpp_2m,
        **LOG_SNR,
        eta=0.0,
        spellings=("DPM++ 2M", "k_dpmpp_2m", "DPM-Solver++(2M)", "DPMSolverMultistepScheduler"),
    ),
    "dpmpp_2m_sde": Sampler(solvers.dpmpp_2m, **LOG_SNR, eta=1.0, spellings=("DPM++ 2M SDE", "k_dpmpp_2m_sde")),
    "unipc": Sampler(solvers.unipc, **LOG_SNR, spellings=("UniPC", "uni_pc_bh2", "UniPCMultistepScheduler")),
    "lcm": Sampler(solvers.lcm, "denoised", "lcm", spellings=("LCM", "LCMScheduler")),
}
