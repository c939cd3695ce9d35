"""How many steps and how much guidance a checkpoint takes by itself."""

import pytest

from keras_diffusion.architectures import ARCHITECTURES, EMOJI, SD15, SD21
from keras_diffusion.sampling.defaults import find_defaults
from keras_diffusion.sampling.scheduler_config import from_scheduler_config

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TURBO = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "epsilon", **BETAS}
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **BETAS}


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        (SD15, PNDM, (50, 7.5)),
        (SD21, TURBO, (1, 1)),
        (SD21, TURBO | {"prediction_type": "v_prediction"}, (50, 7.5)),
        (SD21, TURBO | {"timestep_spacing": "leading"}, (50, 7.5)),
        (SD15, TURBO, (50, 7.5)),
        (SD15, {"_class_name": "LCMScheduler", **BETAS}, (4, 1)),
        (SD15, {"_class_name": "TCDScheduler", **BETAS}, (4, 1)),
        (ARCHITECTURES["lcm"], {"_class_name": "LCMScheduler", **BETAS}, (4, 8.5)),
        (EMOJI, PNDM | {"_class_name": "DDIMScheduler"}, (25, 2)),
    ],
)
def test_what_the_files_say(architecture, config, expected):
    assert find_defaults(architecture, *from_scheduler_config(config)) == expected


def test_a_name_that_says_turbo_beside_a_scheduler_that_does_not(caplog):
    assert find_defaults(SD21, *from_scheduler_config(TURBO), "sd-turbo") == (1, 1)
    assert not caplog.text
    assert find_defaults(SD21, *from_scheduler_config(PNDM), "my-Turbo.safetensors") == (50, 7.5)
    assert "'my-Turbo.safetensors' says turbo" in caplog.text
