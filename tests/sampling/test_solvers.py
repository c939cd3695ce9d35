"""What each solver integrates exactly. That they are diffusers' solvers is in test_samplers.py."""

from functools import partial

import numpy as np
import pytest

from keras_diffusion.sampling import dpm_solvers, solvers, two_stage
from keras_diffusion.sampling.recurrence import HISTORY, A, B, D, T
from keras_diffusion.sampling.schedules import Levels, noise_schedule
from keras_diffusion.sampling.solvers import PLMS

TRAINING = np.sqrt(1 / noise_schedule() - 1)


def levels(ratios):
    return Levels(np.arange(len(ratios) - 1.0)[::-1], np.array(ratios), TRAINING)


def integrate(plan, noise):
    """The error, in sigma / alpha, when the noise is a known function of it: d(x / alpha) = noise d(sigma / alpha)."""
    ratios, alphas = plan.levels.ratios, plan.levels.alphas
    primitive = np.polynomial.Polynomial(noise).integ()
    x, history = alphas[0] * primitive(ratios[0]), []
    for n, row in enumerate(plan.rows):
        history = [np.polynomial.Polynomial(noise)(ratios[n]), *history][:HISTORY]
        x = row[A] * x + np.dot(row[B : B + len(history)], history)
    return x / alphas[-1] - primitive(ratios[-1])


UNEVEN = [14.0, 11.0, 7.0, 5.0, 2.5, 1.0, 0.4]
EVEN = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    "solver", [partial(solvers.euler, eta=0), two_stage.heun, partial(two_stage.dpm2, eta=0), solvers.lms, solvers.pndm]
)
def test_constant_noise_is_integrated_exactly(solver):
    assert abs(integrate(solver(levels(UNEVEN)), [0.3])) < 1e-12


@pytest.mark.parametrize("solver", [two_stage.heun, solvers.pndm, solvers.lms])
def test_linear_noise_is_integrated_exactly_but_for_the_last_or_first_step(solver):
    plan = solver(levels(EVEN))
    error = integrate(plan, [0, 1])
    # Heun ends, LMS begins, with a step of Euler's: half a square with the side of a step. PLMS begins with Heun's.
    assert abs(error) == pytest.approx({two_stage.heun: 0.5, solvers.lms: 0.5, solvers.pndm: 0}[solver], abs=1e-12)


def test_constant_denoised_and_noise_stay():
    for solver in (partial(solvers.ddim, eta=0), partial(dpm_solvers.dpmpp, eta=0), dpm_solvers.unipc):
        plan = solver(levels(UNEVEN))
        alphas, sigmas = plan.levels.alphas, plan.levels.sigmas
        np.testing.assert_allclose(plan.rows[:, A] * sigmas[:-1], sigmas[1:])
        np.testing.assert_allclose(plan.rows[:, A] * alphas[:-1] + plan.rows[:, B:].sum(1), alphas[1:])


def test_heun_and_lms_by_hand():
    start = levels([3.0, 2.0, 0.5])
    heun, lms = two_stage.heun(start), solvers.lms(start)
    alphas = heun.levels.alphas
    # Noise 2 and 5 at the ends of the first step, from x / alpha = 1: 1 + (2 + 5) / 2 * (2 - 3).
    x = heun.rows[0, A] * alphas[0] + heun.rows[0, B] * 2
    assert x / alphas[1] == pytest.approx(1 - 2)
    x = heun.rows[1, A] * x + heun.rows[1, B] * 5 + heun.rows[1, B + 1] * 2
    assert x / alphas[1] == pytest.approx(1 - 3.5)
    # The line through (3, 2) and (2, 5), from 2 to 0.5: 5 + 3 * (2 - r) has the mean 7.25.
    x = lms.rows[1, B] * 5 + lms.rows[1, B + 1] * 2
    assert x / lms.levels.alphas[2] == pytest.approx(7.25 * -1.5)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_lms_integrates_cubics_once_its_history_is_full(degree):
    noise = [0.2, -0.3, 0.05, 0.01][: degree + 1]
    plan = solvers.lms(levels(UNEVEN))
    primitive, noise = np.polynomial.Polynomial(noise).integ(), np.polynomial.Polynomial(noise)
    ratios, alphas = plan.levels.ratios, plan.levels.alphas
    for n in range(3, len(plan.rows)):
        step = plan.rows[n, B : B + 4] @ noise(ratios[n - 3 : n + 1][::-1]) / alphas[n + 1]
        assert step == pytest.approx(primitive(ratios[n + 1]) - primitive(ratios[n]))


@pytest.mark.parametrize("row", [2, 3, 4, 5])
def test_plms_weights_are_adams_bashforths(row):
    """With even steps each order integrates the polynomials below it: the moments of the weights are 1 / (k + 1)."""
    order = min(row, 4)
    rows_back = np.flatnonzero(PLMS[row])
    assert len(rows_back) == order
    age = np.arange(order)  # the row that is skipped is no step
    for k in range(order):
        assert PLMS[row][rows_back] @ (-1.0 * age) ** k == pytest.approx(1 / (k + 1))


def test_plms_uses_the_second_look_at_a_timestep_only_once():
    assert PLMS[1][0]
    assert not any(PLMS[row][row - 1] for row in range(2, len(PLMS)))


def test_ancestral_noise_keeps_the_variance():
    """x' = a x + b noise + d z has variance 1 if the data has none to speak of: (a sigma + b)² + d² = sigma'²."""
    plan = solvers.euler(levels(UNEVEN), eta=1.0)
    sigmas = plan.levels.sigmas
    kept = plan.rows[:, A] * sigmas[:-1] + plan.rows[:, B]
    np.testing.assert_allclose(kept**2 + plan.rows[:, D] ** 2, sigmas[1:] ** 2)
    assert plan.rows[:, D].min() > 0


@pytest.mark.parametrize("solver", [solvers.ddim, solvers.euler, dpm_solvers.dpmpp])
def test_eta_shares_the_noise(solver):
    noise = [solver(levels(UNEVEN), eta=eta).rows[:, D] for eta in (0.0, 0.5, 1.0)]
    assert not noise[0].any()
    assert (noise[0] < noise[1]).all()
    assert (noise[1] < noise[2]).all()


def test_unipc_corrects_2m_with_what_it_learns():
    predictor, corrected = dpm_solvers.dpmpp(levels(UNEVEN), eta=0).rows, dpm_solvers.unipc(levels(UNEVEN)).rows
    np.testing.assert_allclose(predictor[0], corrected[0], rtol=1e-12)
    np.testing.assert_array_equal(predictor[:, A], corrected[:, A])
    change = corrected[1:, B:] - predictor[1:, B:]
    assert (change[:, 0] > 0).all(), "the latest estimate gains weight"
    np.testing.assert_allclose(change.sum(1), 0, atol=1e-15)
    assert not change[0, 2]
    assert change[1:, 2].all()


def test_rows_carry_the_timesteps_of_their_levels():
    for solver in (two_stage.heun, solvers.pndm, solvers.lms, solvers.lcm, dpm_solvers.unipc):
        plan = solver(levels(UNEVEN))
        np.testing.assert_array_equal(plan.rows[:, T], plan.levels.timesteps)
        assert len(plan.steps) == len(plan.rows) == len(plan.levels)
