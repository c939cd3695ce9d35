"""The names of samplers in other tools."""

import pytest

from keras_diffusion.sampling import names
from keras_diffusion.sampling.registry import SAMPLERS


@pytest.mark.parametrize(
    ("spelling", "name", "spacing"),
    [
        ("euler", "euler", None),
        ("Euler a", "euler_ancestral", None),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde", None),
        ("DPM2 Karras", "dpm2", "karras"),
        ("PLMS", "pndm", None),
        ("UniPC", "unipc", None),
        ("LMS Karras", "lms", "karras"),
        ("KDPM2DiscreteScheduler", "dpm2", None),
        ("KerasCV", "keras_cv", None),
        ("DDIM", "ddim", None),
        ("k_euler_ancestral", "euler_ancestral", None),
        ("k_dpmpp_2m_ka", "dpmpp_2m", "karras"),
        ("DPM-Solver++(2M)", "dpmpp_2m", None),
        ("uni_pc_bh2", "unipc", None),
        ("dpm_2", "dpm2", None),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("Euler SGM Uniform", "euler", "sgm_uniform"),
        ("dpmpp_2m_sde_k", "dpmpp_2m_sde", "karras"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None),
        ("k_dpm_2_a_ka", "dpm2_ancestral", "karras"),
        ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", None),
        ("DPM++ 3M SDE", "dpmpp_3m_sde", None),
        ("lms", "lms", None),
    ],
)
def test_spellings(spelling, name, spacing):
    assert names.resolve(spelling) == (name, spacing)


def test_labels_are_those_of_a1111s_menu():
    spellings = ("euler_ancestral", "pndm", "dpmpp_2m_karras", "unipc", "DPMSolverMultistepScheduler")
    assert list(map(names.label, spellings)) == ["Euler a", "PLMS", "DPM++ 2M Karras", "UniPC", "DPM++ 2M"]
    for name in SAMPLERS:
        assert names.resolve(names.label(name)) == (name, None)


def test_every_spelling_means_one_sampler():
    for name, row in SAMPLERS.items():
        assert {names.resolve(text)[0] for text in (name, *row.spellings)} == {name}


@pytest.mark.parametrize(
    ("sampler", "schedule_type", "expected"),
    [
        ("DPM++ 2M", None, ("dpmpp_2m", None)),
        ("DPM++ 2M Karras", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE", "Automatic", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", "Automatic", ("euler_ancestral", None)),
        ("DPM++ SDE", "Polyexponential", ("dpmpp_sde", "exponential")),
        ("Euler", "Uniform", ("euler", "normal")),
        ("Euler", "DDIM", ("euler", "ddim_uniform")),
        ("UniPC", "Align Your Steps", ("unipc", "align_your_steps")),
    ],
)
def test_what_a1111_writes(sampler, schedule_type, expected):
    assert names.from_a1111(sampler, schedule_type) == expected


@pytest.mark.parametrize("spelling", ["DPM adaptive", "Restart", "karras", "DPM++ 2M Zigzag", "", 3])
def test_samplers_that_there_are_not(spelling):
    with pytest.raises(ValueError, match="The sampler must be one of ddim, "):
        names.resolve(spelling)


def test_spacings_that_there_are_not():
    with pytest.raises(ValueError, match=r"`spacing` must be one of leading, .* Received: spacing='Turbo'"):
        names.from_a1111("Euler", "Turbo")
