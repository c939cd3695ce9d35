"""Scheduler configurations as they lie in diffusers folders."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.samplers import build
from keras_diffusion.sampling.scheduler_config import from_scheduler_config
from keras_diffusion.sampling.scheduler_options import DEFAULTS, OPTIONS, SCHEDULE, WITHOUT_EFFECT
from keras_diffusion.sampling.schedules import noise_schedule

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
    [(name, spacing) for name in make.CLASSES for spacing in ("trailing",) + ("karras",) * (name in make.KARRAS)]
    + [("euler", "exponential"), ("dpmpp_2m", "beta")],
)
def test_what_diffusers_saves(name, spacing):
    pytest.importorskip("diffusers")
    scheduler, _ = make.scheduler(name, 7, spacing, "epsilon")
    found, from_config = table({"_class_name": type(scheduler).__name__, **scheduler.config})
    assert found == name.replace("_sde_heun", "_sde")
    own = name in make.DISTILLED or (name, spacing) == ("dpmpp_singlestep", "trailing")
    np.testing.assert_array_equal(from_config.rows, build(name, 7, spacing=None if own else spacing).rows)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(set(make.CLASSES) - make.OF_ANOTHER_CLASS))
def test_what_a_file_leaves_out(name):
    """A file with nothing but the name means what diffusers' own defaults mean."""
    pytest.importorskip("diffusers")
    file, class_name, _ = make.CLASSES[name]
    scheduler = getattr(make.module_of(file), class_name)()
    named = {"_class_name": class_name}
    skip = {"skip_prk_steps": True}  # what every file of Stable Diffusion's says, but not the class
    (found, left_out), (_, given) = table(named | skip), table(named | dict(scheduler.config) | skip)
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
    name, arguments = from_scheduler_config({"_class_name": kind, "skip_prk_steps": True})
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
    expected, _ = make.reference(name, 9, "trailing", "v_prediction", config={"rescale_betas_zero_snr": True})
    result = np.array(make.START * from_config.initial_scale)
    history = [np.zeros_like(result)] * 5
    for t, p, q, a, _, *b in from_config.rows:
        history = [p * result + q * make.model(result, t), *history[:-1]]
        result = a * result + sum(c * h for c, h in zip(b, history, strict=True))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


DPMPP = {"_class_name": "DPMSolverMultistepScheduler"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": None}, "_class_name=None"),
        ({"_class_name": ["DDIMScheduler"]}, "_class_name="),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
        ({**DPMPP, "algorithm_type": "dpmsolver"}, "algorithm_type of DPMSolver.* Change"),
        ({**DPMPP, "algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
        ({**DPMPP, "final_sigmas_type": "zeros"}, "final_sigmas_type"),
        ({**DPMPP, "solver_order": 4}, "solver_order=4"),
        ({**DPMPP, "thresholding": True}, "thresholding"),
        ({**DPMPP, "lambda_min_clipped": "low"}, "lambda_min_clipped='low'"),
        ({**DPMPP, "lambda_min_clipped": -1.5, "timestep_spacing": "trailing"}, "lambda_min_clipped=-1.5"),
        ({**DPMPP, "use_lu_lambdas": True, "use_karras_sigmas": True}, "use_karras_sigmas and use_lu_lambdas"),
        ({**DPMPP, "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({**DPMPP, "solver_type": "bh3"}, "solver_type"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0"),
        ({"_class_name": "UniPCMultistepScheduler", "disable_corrector": ["all"]}, "disable_corrector"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": "many"}, "original_inference_steps"),
        ({"prediction_type": "flow"}, "flow"),
        ({"skip_prk_steps": False}, "skip_prk_steps=False"),
        ({"timestep_spacing": "random"}, "random"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
    ],
)
def test_unsupported(config, message):
    with pytest.raises(ValueError, match=f"{message}") as caught:
        table(SD15 | config)
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize("option", [{"thresholding": True}, {"algorithm_type": "dpmsolver"}])
def test_what_is_not_supported_matters_only_where_it_is_used(caplog, option):
    name, arguments = from_scheduler_config(SD15 | DPMPP | option)
    assert f"{next(iter(option))} of DPMSolverMultistepScheduler must be" in caplog.text
    assert "give `sampler`" in arguments.pop("refusal")
    np.testing.assert_array_equal(build(name, 5, **arguments).rows[:, 0], table(SD15 | DPMPP, 5)[1].rows[:, 0])


@pytest.mark.parametrize(("name", "arguments", "config"), make.OPTIONS)
def test_options_of_the_solvers(name, arguments, config):
    """The fixture says that these arguments are what diffusers makes of these options."""
    kind = make.CLASSES[name.removesuffix("_bh1")][1]
    own = make.CLASSES[name][2] if name in make.CLASSES else {}
    base = {"_class_name": kind, "skip_prk_steps": True, **make.SCALED_LINEAR, **own}
    found, from_config = table(base | config)
    np.testing.assert_array_equal(from_config.rows, build(name, 7, **arguments).rows)
    np.testing.assert_array_equal(from_config.alphas, build(name, 7, **arguments).alphas)
    assert SAMPLERS[found].solver is SAMPLERS[name].solver


def test_pndm_begins_with_runge_kutta_unless_told_otherwise():
    with pytest.raises(ValueError, match="skip_prk_steps=False"):
        table({key: value for key, value in SD15.items() if key != "skip_prk_steps"})


LEFT = [  # scheduler before, what it left in the file, and the one that reads it
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "EulerDiscreteScheduler"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "UniPCMultistepScheduler"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "DDIMScheduler"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "EulerAncestralDiscreteScheduler"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "DDIMScheduler"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "DDPMScheduler"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "LCMScheduler"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "PNDMScheduler"),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "HeunDiscreteScheduler"),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "LMSDiscreteScheduler"),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "KDPM2DiscreteScheduler"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "EulerDiscreteScheduler"),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "EulerAncestralDiscreteScheduler"),
    ("DDIMScheduler", {"thresholding": True}, "EulerDiscreteScheduler"),
    ("LCMScheduler", {"original_inference_steps": 100}, "DDIMScheduler"),
]


@pytest.mark.parametrize(("before", "option", "kind"), LEFT)
def test_what_a_switched_scheduler_left_behind_is_named_and_ignored(caplog, before, option, kind):
    plain = SD15 | {"_class_name": kind}
    _, expected = table(plain)
    assert not caplog.text
    found, result = table(plain | option)
    assert found == table(plain)[0]
    np.testing.assert_array_equal(result.rows, expected.rows)
    assert f"{kind} has no such options" in caplog.text
    assert next(iter(option)) in caplog.text


@pytest.mark.parametrize(("before", "option", "kind"), LEFT)
def test_diffusers_reads_the_same_of_a_switched_scheduler(before, option, kind):
    """diffusers' class has no such option at all, and the one before has."""
    diffusers = pytest.importorskip("diffusers")
    (key,) = option
    parameters = [inspect.signature(getattr(diffusers, name).__init__).parameters for name in (before, kind)]
    assert [key in names for names in parameters] == [True, False]


FILES = {"DDIMParallelScheduler": "ddim_parallel", "DDPMParallelScheduler": "ddpm_parallel"}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_of_every_class_is_read_or_named(kind):
    """What diffusers' constructors take is in our table, or known to be without effect; nothing else is in it."""
    pytest.importorskip("diffusers")
    file = FILES.get(kind) or next(file for file, name, _ in make.CLASSES.values() if name == kind)
    parameters = inspect.signature(getattr(make.module_of(file), kind).__init__).parameters
    everywhere = {*SCHEDULE, *DEFAULTS, "self", "timestep_spacing"}
    assert OPTIONS[kind].keys() <= parameters.keys()
    assert parameters.keys() - everywhere - WITHOUT_EFFECT <= OPTIONS[kind].keys()
    for key, values in OPTIONS[kind].items():
        default = parameters[key].default
        off = default is None and values[0] is False
        assert default == values[0] or off or (kind, key) == ("PNDMScheduler", "skip_prk_steps")


def test_unknown_options_are_named(caplog):
    table(SD15 | {"shiny": 3})
    assert "'shiny': 3" in caplog.text


@pytest.mark.parametrize("kind", ["SASolverScheduler", "IPNDMScheduler", "Mine"])
def test_an_unknown_scheduler_becomes_ddim_on_its_betas(caplog, kind):
    config = SD21 | {"_class_name": kind, "beta_end": 0.02, "rescale_betas_zero_snr": True, "solver_order": 3}
    found, result = table(config)
    assert found == "ddim"
    betas = noise_schedule(beta_end=0.02, rescale_betas_zero_snr=True)
    expected = build("ddim", 7, prediction_type="v_prediction", alphas_cumprod=betas)
    np.testing.assert_array_equal(result.rows, expected.rows)
    assert f"The scheduler {kind} is not known" in caplog.text


def test_a_scheduler_without_betas_is_refused():
    with pytest.raises(ValueError, match=r"beta_start.*Received: _class_name='Other'"):
        from_scheduler_config({"_class_name": "Other"})
