"""How many steps and how much guidance a checkpoint takes by itself."""

import numpy as np
import pytest

from keras_diffusion.architectures import ARCHITECTURES, EMOJI, SD15, SD21
from keras_diffusion.sampling.defaults import Defaults, find_defaults, find_few_steps, warn_of_what_ruins
from keras_diffusion.sampling.samplers import build
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Hyper-SD15-1step-lora", (1, 1, "tcd")),
        ("Hyper-SDXL-8steps-CFG-lora", (8, 5, "ddim")),
        ("hyper_sd15_2steps", (2, 1, "ddim")),
        ("Hyper-SDXL-12steps-CFG-lora", (12, 5, "ddim")),
        ("sdxl_lightning_4step_lora", (4, 1, "euler")),
        ("TCD-SD15-LoRA", (4, 1, "tcd")),
        ("lcm-lora-sdv1-5", (4, 1, "lcm")),
        ("LCM_LoRA_Weights_SD15", (4, 1, "lcm")),
        ("my style", None),
        ("calcmath", None),
    ],
)
def test_names_of_loras_for_few_steps(name, expected):
    found = find_few_steps("unknown", name)
    assert (found and (*found.defaults, found.sampler)) == expected
    if found:
        build(found.sampler, found.defaults.num_steps, **found.schedule)


def test_what_ruins_images_of_distilled_models_is_named(caplog):
    warn_of_what_ruins(Defaults(4, 1.0), 8, np.array([1.0, 2.0]))
    warn_of_what_ruins(Defaults(50, 7.5), 100, np.array([12.0]))
    warn_of_what_ruins(Defaults(4, 8.5), 8, np.array([12.0]))
    assert not caplog.text
    warn_of_what_ruins(Defaults(4, 1.0), 50, np.array([1.0, 7.5]))
    assert "images look burnt" in caplog.text
    assert "Choose num_steps=4. Received: 50" in caplog.text
