"""Every sampler against diffusers' scheduler, by the fixture and directly, and the table's other promises."""

import importlib.util
import json
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion.sampling.recurrence import COLUMNS, HISTORY
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.samplers import build
from keras_diffusion.sampling.schedules import noise_schedule

GOLDEN = Path(__file__).parents[1] / "golden"
spec = importlib.util.spec_from_file_location("make_samplers", GOLDEN / "make_samplers.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

FIXTURE = np.load(GOLDEN / "samplers.npz")
CASES = [(json.loads(case), result) for case, result in zip(FIXTURE["cases"], FIXTURE["results"], strict=True)]
T, P, Q, A, D, B = range(6)


def apply(table, latents, model=make.model, dtype="float64"):
    """The loop that a table is for, plainly: x and its history, row by row."""
    x = latents.astype(dtype)
    history = [np.zeros_like(x)] * HISTORY
    for (t, p, q, a, d, *b), z in zip(table.rows.astype(dtype), noises(table), strict=True):
        history = [p * x + q * model(x, float(t)).astype(dtype), *history[:-1]]
        x = a * x + sum(c * h for c, h in zip(b, history, strict=True)) + d * z.astype(dtype)
    return x


def noises(table):
    """The noise of every row, counted from the first row."""
    for number, c in zip(table.noises - table.noises[0], table.correlations, strict=True):
        yield c * make.step_noise(number - 1) + (1 - c**2) ** 0.5 * make.step_noise(number)


def run(case):
    table = build(**case)
    return apply(table, make.START * (1 if "start" in case else table.initial_scale))[0]


def distance(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


# The samplers that diffusers does not have in this form; k-diffusion's formulas are below.
FROM_K_DIFFUSION = ("dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "ipndm")

# diffusers' constructors of these take a second.
SLOW = ("dpm2", "dpm2_ancestral", "dpmpp_sde")

# The method


@pytest.mark.parametrize(
    ("name", "group"), [(name, list(group)) for name, group in groupby(CASES, lambda case: case[0]["name"])]
)
def test_equals_diffusers_in_float64(name, group):
    # diffusers' DDPM adds noise of deviation 1e-10 in its last step; its LMS integrates by quadrature.
    tolerance = {"ddpm": 1e-9, "lms": 1e-10}.get(name, 1e-12)
    wrong = {str(case): error for case, result in group if not (error := distance(run(case), result)) < tolerance}
    assert not wrong


def test_the_fixture_has_every_case():
    assert [case for case, _ in CASES] == list(make.cases())
    assert {case["name"] for case, _ in CASES} == set(SAMPLERS) - {"keras_cv", *FROM_K_DIFFUSION}
    assert {case["num_steps"] for case, _ in CASES} == {1, 2, 3, 9, 10, 25, 50, 999, 1000}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_fixture_is_what_diffusers_says():
    pytest.importorskip("diffusers")
    for case, result in CASES:
        if case["num_steps"] == 3 and case["name"] not in SLOW:
            table = build(**case)
            again, timesteps = make.reference(**case, levels=(table.alphas, table.sigmas))
            assert distance(again[0], result) < 1e-13, case
            assert np.abs(timesteps - table.rows[:, T]).max() < 1e-9, case


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in make.CLASSES if name not in SLOW])
@pytest.mark.parametrize("num_steps", [10, 25])
def test_equals_diffusers_as_it_is(name, num_steps):
    """In float32, where its alphas_cumprod alone is off by 9e-7: what that makes of 25 steps is 2e-6 of the result."""
    pytest.importorskip("diffusers")
    spacing = SAMPLERS[name].spacing
    expected, timesteps = make.reference(name, num_steps, spacing, wide=False)
    table = build(name, num_steps)
    assert distance(apply(table, make.START * table.initial_scale), expected) < 2e-6
    assert np.abs(timesteps - table.rows[:, T]).max() < 1e-3


def keras_cv(num_steps, alphas_cumprod):
    """What KerasCV 0.9 computes in `StableDiffusion.generate_image`."""
    ratio = 999 / (num_steps - 1) if num_steps > 1 else 1000
    timesteps = (np.arange(num_steps) * ratio).round().astype(int)
    alphas, previous = alphas_cumprod[timesteps], np.append(1, alphas_cumprod[timesteps[:-1]])
    x = make.START
    for i in reversed(range(num_steps)):
        noise = make.model(x, float(timesteps[i]))
        denoised = (x - np.sqrt(1 - alphas[i]) * noise) / np.sqrt(alphas[i])
        x = np.sqrt(previous[i]) * denoised + np.sqrt(1 - previous[i]) * noise
    return x


@pytest.mark.parametrize("num_steps", make.STEPS)
def test_equals_keras_cv(num_steps):
    expected = keras_cv(num_steps, noise_schedule())
    for table in (build("keras_cv", num_steps), build("ddim", num_steps, spacing="keras_cv")):
        assert distance(apply(table, make.START), expected) < 1e-12


def denoised_at(x, ratio, table, row):
    """The denoised latent of the model, for X = x / alpha as k-diffusion has it."""
    return x - ratio * make.model(x / np.hypot(1, ratio), float(table.rows[row, T]))


def ancestral(ratio, after, eta):
    """k-diffusion's `get_ancestral_step`."""
    fresh = eta * (after**2 * (ratio**2 - after**2) / ratio**2) ** 0.5
    return (after**2 - fresh**2) ** 0.5, fresh


def dpmpp_2s(table, x, eta):
    """k-diffusion's `sample_dpmpp_2s_ancestral`."""
    ratios, row = step_ratios(table), 0
    for step, (ratio, after) in enumerate(pairwise(ratios)):
        denoised = denoised_at(x, ratio, table, row)
        down, fresh = ancestral(ratio, after, eta)
        if down > 0:
            middle = (ratio * down) ** 0.5
            halfway = middle / ratio * x + (1 - middle / ratio) * denoised
            denoised = denoised_at(halfway, middle, table, row + 1)
        x = down / ratio * x + (1 - down / ratio) * denoised + fresh * make.step_noise(step)
        row += 2
    return x


def dpmpp_3m_sde(table, x, eta=1.0):
    """k-diffusion's `sample_dpmpp_3m_sde`."""
    ratios, known, lengths = step_ratios(table), [], []
    for n, (ratio, after) in enumerate(pairwise(ratios)):
        known.insert(0, denoised_at(x, ratio, table, n))
        if after == 0:
            return known[0]
        h = np.log(ratio / after)
        both = h * (1 + eta)
        x = np.exp(-both) * x - np.expm1(-both) * known[0]
        phi2 = np.expm1(-both) / both + 1
        if n == 1:
            x = x + phi2 * (known[0] - known[1]) * h / lengths[0]
        elif n > 1:
            r0, r1 = lengths[0] / h, lengths[1] / h
            latest, before = (known[0] - known[1]) / r0, (known[1] - known[2]) / r1
            first = latest + (latest - before) * r0 / (r0 + r1)
            x = x + phi2 * first - (phi2 / both - 0.5) * (latest - before) / (r0 + r1)
        x = x + make.step_noise(n) * after * np.sqrt(-np.expm1(-2 * h * eta))
        lengths.insert(0, h)
    return x


def ipndm(table, x):
    """ComfyUI's `sample_ipndm`."""
    weights = {1: [1], 2: [1.5, -0.5], 3: np.array([23, -16, 5]) / 12, 4: np.array([55, -59, 37, -9]) / 24}
    ratios, known = step_ratios(table), []
    for n, (ratio, after) in enumerate(pairwise(ratios)):
        known.insert(0, make.model(x / np.hypot(1, ratio), float(table.rows[n, T])))
        order = 1 if after == 0 else min(4, n + 1)
        x = x + (after - ratio) * sum(w * noise for w, noise in zip(weights[order], known, strict=False))
    return x


def step_ratios(table):
    """The noise ratio before each step, and that of the result."""
    first_rows = np.append(np.flatnonzero(np.diff(table.steps, prepend=-1)), len(table.rows))
    return (table.sigmas / table.alphas)[first_rows]


FORMULAS = {
    "dpmpp_2s": partial(dpmpp_2s, eta=0.0),
    "dpmpp_2s_ancestral": partial(dpmpp_2s, eta=1.0),
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "ipndm": ipndm,
}


@pytest.mark.parametrize("name", FROM_K_DIFFUSION)
@pytest.mark.parametrize("spacing", [None, "karras", "sgm_uniform"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 50, 1000])
def test_equals_k_diffusion(name, spacing, num_steps):
    table = build(name, num_steps, spacing=spacing)
    start = make.START * table.initial_scale
    assert distance(apply(table, start), FORMULAS[name](table, start / table.alphas[0])) < 1e-9


# The numbers


DATA_MEAN, DATA_DEVIATION = 0.5, 0.8
RATIOS = np.sqrt(1 / noise_schedule() - 1)
QUANTILES = np.linspace(-2, 2, 9).reshape(3, 3)


def portrait(x, t):
    """The exact noise prediction for normal data, a tame and realistic network."""
    ratio = np.interp(t, np.arange(1000), RATIOS)
    alpha, sigma = 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
    return sigma * (x - alpha * DATA_MEAN) / ((alpha * DATA_DEVIATION) ** 2 + sigma**2)


def portrait_quantiles(alpha, sigma):
    """What `QUANTILES` of the data become at a noise level; the exact solution takes each along."""
    return alpha * DATA_MEAN + np.hypot(alpha * DATA_DEVIATION, sigma) * QUANTILES


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 4, 50, 1000])
@pytest.mark.parametrize("karras", [False, True])
def test_float32_is_enough(name, num_steps, karras):
    table = build(name, num_steps, karras=karras)
    start = portrait_quantiles(table.alphas[0], table.sigmas[0])
    exact = apply(table, start, portrait)
    assert np.abs(apply(table, start, portrait, "float32") - exact).max() < 1e-4 * max(1, np.abs(exact).max())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", make.STEPS)
def test_rows_are_well_conditioned(name, num_steps):
    assert np.abs(build(name, num_steps).rows[:, A:]).max() < 16  # 1 / alpha of the noisiest level is 14.6


@pytest.mark.parametrize(
    "name", [name for name, row in SAMPLERS.items() if not row.options.get("eta") and name != "lcm"]
)
def test_follows_the_exact_solution(name):
    """In 40 steps first order comes within 0.08, second order in pairs within 0.02, the others within 0.005."""
    table = build(name, 40, karras=True)
    result = apply(table, portrait_quantiles(table.alphas[0], table.sigmas[0]), portrait)
    error = np.abs(result - portrait_quantiles(table.alphas[-1], table.sigmas[-1])).max()
    bounds = {"ddim": 0.08, "euler": 0.08, "keras_cv": 0.08, "dpmpp_singlestep": 0.02}
    assert error < bounds.get(name, 0.005)


# The table

TWO_STAGE = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_sde")
STARTING_AT_SIGMA = ("euler", "euler_ancestral", "lms", "ipndm", *TWO_STAGE)
REMEMBERING = ("pndm", "lms", "ipndm", *make.LOG_SNR, "dpmpp_3m_sde", "unipc_bh1")


def test_the_table_of_a_simple_sampler():
    table = build("ddim", 4)
    assert table.rows.shape == (4, len(COLUMNS))
    assert COLUMNS == ("t", "p", "q", "a", "d", "b0", "b1", "b2", "b3", "b4")
    np.testing.assert_array_equal(table.rows[:, T], [751, 501, 251, 1])
    np.testing.assert_allclose(table.alphas**2 + table.sigmas**2, 1)
    alphas_cumprod = noise_schedule()
    np.testing.assert_allclose(table.alphas**2, alphas_cumprod[[751, 501, 251, 1, 0]])
    assert table.initial_scale == 1
    assert not table.stochastic
    assert build("ddim", 4, eta=0.5).stochastic


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_row_leads_to_its_level(name):
    """If the network is right about x = alpha * denoised + sigma * noise, so is every row, up to its fresh noise."""
    table = build(name, 7)
    denoised, noise = 0.7, 0 if name == "dpmpp_sde" else -0.4  # a second stage takes back the first one's noise
    history = []
    for n, (_, p, q, a, d, *b) in enumerate(table.rows):
        x = table.alphas[n] * denoised + table.sigmas[n] * noise
        history = [p * x + q * noise, *history][:HISTORY]
        result = a * x + sum(c * h for c, h in zip(b, history, strict=False))
        if name == "lcm":  # keeps a little of x, by design
            assert abs(result - table.alphas[n + 1] * denoised) < 1e-4
        else:
            np.testing.assert_allclose(
                result, table.alphas[n + 1] * denoised + carried(table, n, d) * noise, atol=1e-12
            )


def carried(table, n, d):
    """How much of the old noise is left when fresh noise of deviation d makes up the rest."""
    return np.sqrt(table.sigmas[n + 1] ** 2 - d**2)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_steps_count_what_the_user_asked_for(name, num_steps):
    steps = build(name, num_steps).steps
    assert steps[0] == 0
    assert steps[-1] == num_steps - 1
    assert set(np.diff(steps)) <= {0, 1}
    extra = num_steps - 1 if name in TWO_STAGE else int(name == "pndm" and num_steps > 1)
    assert len(steps) == num_steps + extra


@pytest.mark.parametrize("name", SAMPLERS)
def test_starting_later(name):
    whole, late = build(name, 8), build(name, 8, start=3)
    kept = whole.steps >= 3
    assert (late.steps[0], late.steps[-1]) == (3, 7)
    assert late.alphas[0] == whole.alphas[:-1][kept][0]
    for row in range(min(HISTORY, len(late.rows))):
        assert not late.rows[row, B + row + 1 :].any(), "nothing is known before the first row"
    if name not in REMEMBERING:
        np.testing.assert_array_equal(late.noises, whole.noises[kept])
        np.testing.assert_array_equal(late.rows, whole.rows[kept])


@pytest.mark.parametrize("name", SAMPLERS)
def test_initial_scale(name):
    for spacing in ("linspace", "trailing", "karras"):
        table = build(name, 10, spacing=spacing)
        assert table.initial_scale == (table.sigmas[0] if name in STARTING_AT_SIGMA else 1)
    assert build(name, 10, spacing="leading").initial_scale == 1


# Choices


def test_karras_three_ways():
    for name in ("euler", "dpmpp_2m", "ddim"):
        first, *others = build(f"{name} karras", 6), build(name, 6, karras=True), build(name, 6, spacing="karras")
        for other in others:
            np.testing.assert_array_equal(first.rows, other.rows)


def test_karras_bends_another_spacing():
    plain, bent = build("euler", 6, spacing="trailing"), build("euler", 6, spacing="trailing", karras=True)
    np.testing.assert_allclose(plain.alphas[[0, 5]], bent.alphas[[0, 5]])
    assert np.abs(plain.alphas[1:5] - bent.alphas[1:5]).min() > 0.01


def test_own_timesteps():
    np.testing.assert_array_equal(
        build("dpmpp_2m", timesteps=[999, 850, 500, 124, 24]).rows[:, T], [999, 850, 500, 124, 24]
    )
    np.testing.assert_array_equal(build("ddim", timesteps=[751, 501, 251, 1]).rows, build("ddim", 4).rows)


@pytest.mark.parametrize("value", [True, 1.5, "20", None, np.float64(3)])
def test_num_steps_of_another_type(value):
    with pytest.raises(TypeError, match=r"`num_steps` must be an int from 1 to 1000\. Received: num_steps="):
        build("ddim", value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, r"`num_steps` must be from 1 to 1000\. Received: num_steps=0"),
        ({"num_steps": -1}, "num_steps=-1"),
        ({"num_steps": 1001}, "num_steps=1001"),
        ({"name": "ddmi"}, "must be one of ddim, ddpm, pndm, .* Received: sampler='ddmi'"),
        ({"name": 3}, "Received: sampler=3"),
        ({"name": "x" * 1000}, "must be one of"),
        ({"prediction_type": "noise"}, "must be one of epsilon, v_prediction, sample"),
        ({"prediction_type": ["epsilon"]}, "must be one of epsilon"),
        ({"spacing": "even"}, "must be one of leading, trailing, linspace, keras_cv, lcm"),
        ({"eta": 1.5}, "from 0 to 1"),
        ({"eta": float("nan")}, "from 0 to 1"),
        ({"eta": True}, "from 0 to 1"),
        ({"eta": "1"}, "from 0 to 1"),
        ({"name": "heun", "eta": 0.5}, "only for ddim, ddpm, keras_cv, euler"),
        ({"start": 10}, "`start` must be from 0 to 9"),
        ({"start": -1}, "`start` must be from 0 to 9"),
        ({"steps_offset": -1}, "`steps_offset` must be from 0"),
        ({"timesteps": [5, 3]}, "not both"),
        ({"timesteps": [5, 5], "num_steps": None}, "must be a list of numbers that decrease"),
        ({"timesteps": [1000, 5], "num_steps": None}, "from less than 1000"),
        ({"timesteps": [], "num_steps": None}, "must be a list of numbers"),
        ({"timesteps": [5, float("nan")], "num_steps": None}, "must be a list of numbers"),
        ({"alphas_cumprod": [0.1, 0.9]}, "`alphas_cumprod` must be a list of numbers that decrease"),
        ({"alphas_cumprod": [1.0, 0.9]}, "from less than 1 to at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        build(**{"name": "ddim", "num_steps": 10} | arguments)
    assert len(str(error.value)) < 500


def test_zero_terminal_snr():
    """Only a network that predicts velocity or the sample can start from pure noise."""
    schedule = noise_schedule(rescale_betas_zero_snr=True)
    table = build("ddim", 5, spacing="trailing", prediction_type="v_prediction", alphas_cumprod=schedule)
    assert table.alphas[0] == 0
    assert table.rows[0, A] == pytest.approx(table.sigmas[1])
    for arguments in ({}, {"name": "euler", "prediction_type": "v_prediction"}):
        with pytest.raises(ValueError, match="without any signal"):
            build(**{"name": "ddim", "num_steps": 5, "spacing": "trailing", "alphas_cumprod": schedule} | arguments)
