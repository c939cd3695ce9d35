"""Chooses how many steps and how much guidance a checkpoint is drawn with where a call does not say."""

import logging
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Defaults(NamedTuple):
    """Holds what a call takes for the arguments that it leaves out.

    Args:
        num_steps: Number of steps.
        guidance: `unconditional_guidance_scale`; 1 is without guidance.
    """

    num_steps: int
    guidance: float


USUAL = Defaults(50, 7.5)  # KerasCV's, and diffusers'
OF_ARCHITECTURES = {"emoji": Defaults(25, 2.0)}
OF_SAMPLERS = {"lcm": Defaults(4, 1.0), "tcd": Defaults(4, 1.0)}  # the scheduler of a network distilled for few steps
LCM = Defaults(4, 8.5)  # of a network that takes the guidance itself; as diffusers' pipeline
TURBO = Defaults(1, 1.0)  # SD-Turbo's model card
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
