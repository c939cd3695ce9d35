"""Scheduler configurations as they lie in diffusers folders."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion.sampling.samplers import build
from keras_diffusion.sampling.scheduler_config import from_scheduler_config

SCRIPT = Path(__file__).parents[1] / "golden" / "make_samplers.py"
spec = importlib.util.spec_from_file_location("make_samplers", SCRIPT)
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

# Stable Diffusion 1.5 and 2.1, as published.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD21 = SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


def table(config, num_steps=7):
    name, arguments = from_scheduler_config(config)
    return name, build(name, num_steps, **arguments)


def test_published_configurations():
    name, from_config = table(SD15)
    assert name == "pndm"
    np.testing.assert_array_equal(from_config.rows, build("pndm", 7).rows)
    name, from_config = table(SD21)
    assert name == "ddim"
    np.testing.assert_array_equal(from_config.rows, build("ddim", 7, prediction_type="v_prediction").rows)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "spacing"),
    [(name, spacing) for name in make.CLASSES for spacing in ("trailing",) + ("karras",) * (name in make.KARRAS)],
)
def test_what_diffusers_saves(name, spacing):
    pytest.importorskip("diffusers")
    scheduler, _ = make.scheduler(name, 7, spacing, "epsilon")
    found, from_config = table({"_class_name": type(scheduler).__name__, **scheduler.config})
    assert found == name
    np.testing.assert_array_equal(from_config.rows, build(name, 7, spacing=None if name == "lcm" else spacing).rows)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(set(make.CLASSES) - {"dpmpp_2m_sde"}))
def test_what_a_file_leaves_out(name):
    """A file with nothing but the name means what diffusers' own defaults mean."""
    pytest.importorskip("diffusers")
    file, class_name, _ = make.CLASSES[name]
    scheduler = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{file}"), class_name)()
    named = {"_class_name": class_name}
    spelled_out = named | dict(scheduler.config) | {"skip_prk_steps": True}
    (found, left_out), (_, given) = table(named), table(spelled_out)
    assert found == name
    np.testing.assert_array_equal(left_out.rows, given.rows)
    np.testing.assert_array_equal(left_out.alphas, given.alphas)


@pytest.mark.parametrize(
    ("kind", "beta_start", "beta_end", "to_clean"),
    [
        ("DDIMScheduler", 0.0001, 0.02, True),
        ("PNDMScheduler", 0.0001, 0.02, False),
        ("UniPCMultistepScheduler", 0.0001, 0.02, True),
        ("HeunDiscreteScheduler", 0.00085, 0.012, True),
        ("KDPM2DiscreteScheduler", 0.00085, 0.012, True),
        ("LCMScheduler", 0.00085, 0.012, True),
    ],
)
def test_defaults_of_the_classes(kind, beta_start, beta_end, to_clean):
    name, arguments = from_scheduler_config({"_class_name": kind})
    alphas_cumprod = arguments["alphas_cumprod"]
    assert 1 - alphas_cumprod[0] == pytest.approx(beta_start)
    assert 1 - alphas_cumprod[-1] / alphas_cumprod[-2] == pytest.approx(beta_end)
    middle = (beta_start + beta_end) / 2 if kind != "LCMScheduler" else (beta_start**0.5 + beta_end**0.5) ** 2 / 4
    assert 1 - alphas_cumprod[500] / alphas_cumprod[499] == pytest.approx(middle, rel=0.01)
    assert (build(name, 3, **arguments).alphas[-1] == 1) == to_clean


def test_supported_options():
    known = {
        "disable_corrector": [],
        "lower_order_final": True,
        "original_inference_steps": 50,
        "predict_x0": True,
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_scaling": 10.0,
        "use_exponential_sigmas": False,
        "use_flow_sigmas": False,
        "use_lu_lambdas": False,
    }
    assert from_scheduler_config(SD15 | known)[0] == "pndm"


@pytest.mark.parametrize(
    ("kind", "left"), [("DDIMScheduler", 0), ("LCMScheduler", 0), ("UniPCMultistepScheduler", 2**-24)]
)
def test_what_zero_terminal_snr_leaves(kind, left):
    _, arguments = from_scheduler_config(SD15 | {"_class_name": kind, "rescale_betas_zero_snr": True})
    assert arguments["alphas_cumprod"][-1] == left


def test_the_stochastic_solver_of_one_class():
    config = SD15 | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    assert from_scheduler_config(config)[0] == "dpmpp_2m_sde"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ddim", {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}),
        ("euler", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}),
        ("dpmpp_2m", {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing"}),
        ("unipc", {"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "trailing"}),
    ],
)
def test_zero_terminal_snr(name, config):
    pytest.importorskip("diffusers")
    config = SD21 | config | {"rescale_betas_zero_snr": True}
    _, from_config = table(config, 9)
    expected, _ = make.reference(name, 9, "trailing", "v_prediction", rescale_betas_zero_snr=True)
    result = np.array(make.START * from_config.initial_scale)
    history = [np.zeros_like(result)] * 5
    for t, p, q, a, _, *b in from_config.rows:
        history = [p * result + q * make.model(result, t), *history[:-1]]
        result = a * result + sum(c * h for c, h in zip(b, history, strict=True))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("_class_name", None),
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("algorithm_type", "dpmsolver"),
        ("final_sigmas_type", "sigma_min"),
        ("prediction_type", "flow"),
        ("skip_prk_steps", False),
        ("solver_order", 3),
        ("thresholding", True),
        ("timestep_spacing", "random"),
        ("use_beta_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_flow_sigmas", True),
        ("use_lu_lambdas", True),
        ("beta_schedule", "sigmoid"),
    ],
)
def test_unsupported(option, value):
    with pytest.raises(ValueError, match="Received: "):
        table(SD15 | {option: value})
