"""The names of samplers in other tools."""

import pytest

from keras_diffusion.sampling import names
from keras_diffusion.sampling.registry import SAMPLERS


@pytest.mark.parametrize(
    ("spelling", "name", "karras"),
    [
        ("euler", "euler", False),
        ("Euler a", "euler_ancestral", False),
        ("DPM++ 2M Karras", "dpmpp_2m", True),
        ("DPM++ 2M SDE", "dpmpp_2m_sde", False),
        ("DPM2 Karras", "dpm2", True),
        ("PLMS", "pndm", False),
        ("UniPC", "unipc", False),
        ("LMS Karras", "lms", True),
        ("KDPM2DiscreteScheduler", "dpm2", False),
        ("KerasCV", "keras_cv", False),
        ("DDIM", "ddim", False),
        ("k_euler_ancestral", "euler_ancestral", False),
        ("k_dpmpp_2m_ka", "dpmpp_2m", True),
        ("DPM-Solver++(2M)", "dpmpp_2m", False),
        ("uni_pc_bh2", "unipc", False),
        ("dpm_2", "dpm2", False),
    ],
)
def test_spellings(spelling, name, karras):
    assert names.resolve(spelling) == (name, karras)


def test_labels_are_those_of_a1111s_menu():
    spellings = ("euler_ancestral", "pndm", "dpmpp_2m_karras", "unipc", "DPMSolverMultistepScheduler")
    assert list(map(names.label, spellings)) == ["Euler a", "PLMS", "DPM++ 2M Karras", "UniPC", "DPM++ 2M"]
    for name in SAMPLERS:
        assert names.resolve(names.label(name)) == (name, False)


def test_every_spelling_means_one_sampler():
    for name, row in SAMPLERS.items():
        assert {names.resolve(text)[0] for text in (name, *row.spellings)} == {name}
