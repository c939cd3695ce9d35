"""Chooses how many steps and how much guidance a checkpoint is drawn with where a call does not say."""

import logging
import re
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)


class Defaults(NamedTuple):
    """Holds what a call takes for the arguments that it leaves out.

    Args:
        num_steps: Number of steps.
        guidance: `unconditional_guidance_scale`; 1 is without guidance.
    """

    num_steps: int
    guidance: float


class FewSteps(NamedTuple):
    """Holds how images are drawn with a LoRA that was distilled for few steps.

    Args:
        defaults: The `Defaults`.
        sampler: A name in `SAMPLERS`.
        schedule: The arguments of `samplers.build` that the sampler takes, a dict.
    """

    defaults: Defaults
    sampler: str
    schedule: dict


USUAL = Defaults(50, 7.5)  # KerasCV's, and diffusers'
OF_ARCHITECTURES = {"emoji": Defaults(25, 2.0)}
OF_SAMPLERS = {"lcm": Defaults(4, 1.0), "tcd": Defaults(4, 1.0)}  # the scheduler of a network distilled for few steps
LCM = Defaults(4, 8.5)  # of a network that takes the guidance itself; as diffusers' pipeline
TURBO = Defaults(1, 1.0)  # SD-Turbo's model card
UNGUIDED, MANY_STEPS = 2.0, 25  # above which images of models distilled without guidance, or for few steps, are worse
_DDIM = ("ddim", {"spacing": "trailing"})
OF_LORAS = (  # what a name says → guidance, sampler and schedule, by the model cards; a number in it is that of steps
    (r"hyper[-_ ]?sd.*?(?<!\d)(1)[-_ ]?steps?", 1.0, "tcd", {"eta": 1.0}),
    (r"hyper[-_ ]?sd.*?(?<!\d)(\d\d?)[-_ ]?steps?.*cfg", 5.0, *_DDIM),
    (r"hyper[-_ ]?sd.*?(?<!\d)(\d\d?)[-_ ]?steps?", 1.0, *_DDIM),
    (r"lightning.*?(?<!\d)(\d\d?)[-_ ]?steps?", 1.0, "euler", {"spacing": "trailing"}),
    (r"(?<![a-z])tcd(?![a-z])", 1.0, "tcd", {"eta": 0.3}),
    (r"(?<![a-z])lcm(?![a-z])", 1.0, "lcm", {}),
)
FEW = 4  # steps of those that name no number
SD2_WIDTH = 1024  # of the text encoder of Stable Diffusion 2, of which SD-Turbo is made


def find_defaults(architecture, sampler, schedule, name=""):
    """Finds the defaults of a checkpoint by what its files say.

    SD-Turbo says only that it is a Stable Diffusion 2 that predicts noise, with Euler's scheduler and trailing
    timesteps, which no other published checkpoint has together.

    Args:
        architecture: The `Architecture` of the networks.
        sampler: A name in `SAMPLERS`, the checkpoint's own.
        schedule: The arguments of `samplers.build` that `from_scheduler_config` returns.
        name: The name of the checkpoint's file or folder.

    Returns:
        The `Defaults`.
    """
    if architecture.diffusion_model.guidance_width:
        return LCM
    by_files = (
        sampler == "euler"
        and schedule.get("spacing") == "trailing"
        and schedule.get("prediction_type") == "epsilon"
        and architecture.text_encoder
        and architecture.text_encoder.width == SD2_WIDTH
    )
    by_name = "turbo" in name.lower()
    found = TURBO if by_files else OF_ARCHITECTURES.get(architecture.name) or OF_SAMPLERS.get(sampler, USUAL)
    if by_name and found == USUAL:
        logger.warning(
            "The name %.100r says turbo, but its scheduler does not. Images take %d steps and guidance %g unless "
            "a call says otherwise; SD-Turbo takes num_steps=1 to 4 and unconditional_guidance_scale=1.",
            name,
            *found,
        )
    elif found in (TURBO, *OF_SAMPLERS.values()):
        logger.info("Drawn with %d steps and guidance %g unless a call says otherwise.", *found)
    return found


def find_few_steps(*names):
    """Tells whether a LoRA was distilled for few steps.

    Args:
        *names: What its file, and the file's metadata, call it.

    Returns:
        The `FewSteps` of the first name that says so, or None.
    """
    for name in names:
        for pattern, guidance, sampler, schedule in OF_LORAS:
            if found := re.search(pattern, name.lower()):
                steps = int(found[1]) if found.re.groups else FEW
                return FewSteps(Defaults(max(1, steps), guidance), sampler, schedule)
    return None


def warn_of_what_ruins(defaults, num_steps, guidance):
    """Names in a warning what makes images of distilled models worse.

    Args:
        defaults: The model's `Defaults`.
        num_steps: The number of steps asked for.
        guidance: The guidance asked for, (b,).
    """
    if defaults.guidance == 1 and np.max(guidance) > UNGUIDED:
        logger.warning(
            "This model was distilled to draw without guidance; with it, images look burnt. Choose "
            "unconditional_guidance_scale=1. Received: %g",
            np.max(guidance),
        )
    if defaults.num_steps < MANY_STEPS < num_steps:
        logger.warning(
            "This model was distilled for few steps; with many, images are worse. Choose num_steps=%d. Received: %d",
            defaults.num_steps,
            num_steps,
        )
