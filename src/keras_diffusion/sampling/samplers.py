"""Samplers turn a solver, a timestep spacing and a prediction type into a table of numbers for one loop.

    h_n     = p_n x_n + q_n model(x_n, t_n)
    x_{n+1} = a_n x_n + sum_j b_{n,j} h_{n-j} + d_n z_n

`build` returns the `Table` of this recurrence. Each row asks the network once, and nothing in a row depends on the
latents, so one loop runs every sampler.

Every sampler is that of diffusers 0.42, except where diffusers departs from the paper or cannot run:

    ddim, pndm; linspace, trailing    assumes steps of equal length (issues 11347, 12633); here a step ends where the
                                      next begins
    pndm; v_prediction                combines velocities of different timesteps (issue 14816); here their noise
    pndm, euler_ancestral, dpm2,      refuses
      dpm2_ancestral, dpmpp_sde;
      sample
    leading; 1000 steps               starts at timestep 1000: an IndexError, or a level visited twice; here the offset
                                      gives way
    dpmpp_2m and its kind, deis,      leading with 999 steps, leading and linspace with 1000: divides by zero or fails;
      unipc                           here all levels differ
    trailing; 61, 103, ... steps      makes one step too many, to timestep -1
    lcm, tcd; more than 50 steps      refuses; here there are then as many distilled timesteps as steps
    tcd                               pipelines take eta 0; here it is the scheduler's and the paper's 0.3
    dpmpp_3m_sde                      has a wrong sign in the third order's last term; here it is k-diffusion's
    unipc_bh1                         gives NaN at a clean end
    deis; karras, 1 step              stays where it is; here it goes to the level of timestep 0
    ddpm                              adds noise of deviation 1e-10 in its last step
    start; pndm, lms                  goes on as if there had been steps before; here the solver begins anew
    squaredcos_cap_v2; karras         cuts timesteps to whole numbers and can lose its place (issue 12771); here they
                                      are rounded
"""

from dataclasses import dataclass
from numbers import Real

import numpy as np

from keras_diffusion.arguments import choice, whole_number
from keras_diffusion.sampling.names import resolve, resolve_spacing
from keras_diffusion.sampling.recurrence import A, D, P, Q
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.schedules import TO_WHOLE, chosen_levels, noise_levels, noise_schedule
from keras_diffusion.sampling.spacings import LEVEL_SPACINGS, SPACINGS, SPREADS

# (p, q) of h = p x + q prediction, for the estimate a solver works on and the prediction of the network.
# Salimans and Ho 2022 (arXiv:2202.00512), appendix D: velocity = alpha noise - sigma denoised.
ESTIMATES = {
    "noise": {
        "epsilon": lambda alpha, sigma: (0, 1),
        "v_prediction": lambda alpha, sigma: (sigma, alpha),
        "sample": lambda alpha, sigma: (1 / sigma, -alpha / sigma),
    },
    "denoised": {
        "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
        "v_prediction": lambda alpha, sigma: (alpha, -sigma),
        "sample": lambda alpha, sigma: (0, 1),
    },
}


@dataclass(frozen=True, eq=False)
class Table:
    """Holds a sampler in numbers: the rows that the denoising loop runs.

    Args:
        rows: float64 (rows, len(COLUMNS)), the columns t, p, q, a, d, b0, b1, ...
        alphas: float64 (rows + 1,), the share of signal in the latent that each row starts from, then in the result.
        sigmas: float64 (rows + 1,), the share of noise at the same places. Entering a table means starting from
            `alphas[0] * latent + sigmas[0] * noise`.
        steps: int (rows,), the step that each row belongs to, counted from 0 and not from `start`.
        noises: int (rows,), the number of the noise that each row adds; it does not depend on `start` either.
        correlations: float64 (rows,), that of each row's noise with the noise whose number is one less.
        initial_scale: The factor that turns unit noise into the first latent if there is no image to start from.
        stochastic: Whether any row adds noise.
    """

    rows: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray
    steps: np.ndarray
    noises: np.ndarray
    correlations: np.ndarray
    initial_scale: float
    stochastic: bool


def rows_between(steps, start, end):
    """Finds the rows of the steps that lie between two fractions of all steps.

    Args:
        steps: (rows,), as in a `Table`.
        start: A fraction, from 0 to 1.
        end: A fraction, from 0 to 1.

    Returns:
        A bool array (rows,).
    """
    steps = np.asarray(steps) - steps[0]
    return (steps / (steps[-1] + 1) >= start) & ((steps + 1) / (steps[-1] + 1) <= end)


def rows_of_every(steps, n, *columns):
    """Finds the rows of every n-th step; the count restarts where any of the columns changes.

    Args:
        steps: (rows,), as in a `Table`.
        n: An int of at least 1.
        *columns: (rows,) or (rows, k), numbers that are the same in all rows of a step.

    Returns:
        A bool array (rows,).
    """
    steps, changed = np.asarray(steps), np.zeros(len(steps), bool)
    for column in columns:
        changed[1:] |= (np.diff(np.float64(column).reshape(len(steps), -1), axis=0) != 0).any(axis=1)
    return (steps - np.maximum.accumulate(np.where(changed, steps, steps[0]))) % n == 0


def build(
    name,
    num_steps=None,
    *,
    prediction_type="epsilon",
    spacing=None,
    karras=False,
    eta=None,
    alphas_cumprod=None,
    steps_offset=1,
    ends_clean=None,
    timesteps=None,
    start=0,
    spread=None,
    last_timestep=None,
    distilled_steps=50,
    options=None,
    refusal=None,
):
    """Returns the table of a sampler.

    The defaults are those of diffusers' Stable Diffusion pipelines.

    Args:
        name: A name in `SAMPLERS` or another spelling of it, see `names.resolve`.
        num_steps: Number of steps, from 1 to the number of training timesteps.
        prediction_type: What the network predicts: "epsilon", "v_prediction" or "sample".
        spacing: How timesteps or levels are chosen: a name in `ALL_SPACINGS`, or another spelling of it. A name in
            `SPREADS`, such as "karras", is linspace with that spread.
        karras: Whether to spread the noise levels as Karras et al. 2022 do; the same as `spread="karras"`.
        eta: Share of ancestral noise, from 0 to 1, for the samplers that take it.
        alphas_cumprod: float (num_train_timesteps,), see `noise_schedule`.
        steps_offset: The number that leading spacing adds to its timesteps, if there is room.
        ends_clean: Whether the last step ends at a clean latent; otherwise at the noise level of timestep 0.
        timesteps: The timesteps themselves, decreasing, instead of `num_steps` and `spacing`.
        start: Number of steps left out at the noisy end (image to image).
        spread: A name in `SPREADS`: distributes the levels anew between the extremes of `spacing`.
        last_timestep: The noisiest timestep that may be visited; None is the last one trained.
        distilled_steps: The number of timesteps that lcm spacing chooses from.
        options: Further keyword arguments of the solver.
        refusal: Why this sampler cannot be built as it was asked for, or None.

    Returns:
        A `Table`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, or the sampler is not defined for them together.
    """
    if refusal:
        raise ValueError(refusal)
    name, named_spacing = resolve(name)
    sampler = SAMPLERS[name]
    convert = ESTIMATES[sampler.estimate][choice("prediction_type", prediction_type, ESTIMATES["noise"])]
    alphas_cumprod = noise_schedule() if alphas_cumprod is None else _falling("alphas_cumprod", alphas_cumprod, 1)
    spacing = resolve_spacing(spacing) or named_spacing
    spread = "karras" if karras else spread
    if spacing in SPREADS:
        spacing, spread = None, spacing
    if ends_clean is None:
        bent = spread and sampler.extremes == "visited"
        ends_clean = sampler.ends_clean or bool(bent) or spacing in ("keras_cv", *LEVEL_SPACINGS)
    if timesteps is not None and num_steps is not None:
        raise ValueError(f"Give `num_steps` or `timesteps`, not both. Received: num_steps={num_steps!r:.200}")
    if timesteps is not None:
        timesteps = _falling("timesteps", timesteps, len(alphas_cumprod))
    else:
        num_steps = whole_number("num_steps", num_steps, 1, len(alphas_cumprod))
    spacing = spacing or ("linspace" if spread else sampler.spacing)
    if timesteps is None and spacing in LEVEL_SPACINGS:
        levels = chosen_levels(alphas_cumprod, LEVEL_SPACINGS[spacing], num_steps, ends_clean)
    else:
        if timesteps is None:
            trained = len(alphas_cumprod) if last_timestep is None else last_timestep + 1
            timesteps = _timesteps(sampler, spacing, num_steps, trained, steps_offset, distilled_steps)
        whole = spread in sampler.rounded_spacings
        levels = noise_levels(alphas_cumprod, timesteps, spread, sampler.extremes, whole, ends_clean)
    initial_scale = levels.sigmas[0] if sampler.starts_at_sigma and spacing != "leading" else 1.0
    start = whole_number("start", start, 0, len(levels) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        solved = sampler.solver(levels.starting_at(start), **_options(sampler, eta, options))
        alphas, sigmas = solved.levels.alphas, solved.levels.sigmas
        solved.rows[:, P], solved.rows[:, Q] = convert(alphas[:-1], sigmas[:-1])
    if sampler.starts_at_sigma:
        solved.rows[-1, A:] /= alphas[-1]  # diffusers hands on x / alpha
    _require_finite(name, solved.rows, alphas, prediction_type)
    return Table(
        solved.rows,
        alphas,
        sigmas,
        solved.steps,
        solved.noises,
        solved.correlations,
        float(initial_scale),
        bool(solved.rows[:, D].any()),
    )


def _timesteps(sampler, spacing, num_steps, trained, steps_offset, distilled_steps):
    """Chooses the timesteps of a sampler."""
    steps_offset = whole_number("steps_offset", steps_offset, 0, trained)
    distilled = {"distilled_steps": distilled_steps} if spacing == "lcm" else {}
    timesteps = SPACINGS[spacing](trained, num_steps, sampler.extra_points, steps_offset, **distilled)
    return TO_WHOLE[spacing](timesteps) if spacing in sampler.rounded_spacings else timesteps


def _falling(name, values, bound):
    """Checks that values decrease, from less than `bound` to at least 0."""
    array = np.asarray(values, "float64")
    if array.ndim != 1 or not array.size or not (array[0] < bound and array[-1] >= 0 and (np.diff(array) < 0).all()):
        raise ValueError(
            f"`{name}` must be a list of numbers that decrease, from less than {bound} to at least 0. "
            f"Received: {name}={values!r:.200}"
        )
    return array


def _options(sampler, eta, options):
    """Returns the keyword arguments of the solver, with eta if it takes it."""
    options = {**sampler.options, **(options or {})}
    if eta is None:
        return options
    if "eta" not in options or isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta <= 1:
        having = ", ".join(name for name, row in SAMPLERS.items() if "eta" in row.options)
        raise ValueError(f"`eta` must be a number from 0 to 1, and only for {having}. Received: eta={eta!r:.200}")
    return options | {"eta": float(eta)}


def _require_finite(name, rows, alphas, prediction_type):
    """Raises an error if a sampler is not defined where it starts."""
    if not np.isfinite(rows).all():
        raise ValueError(
            f"{name} cannot start from a latent without any signal when the network predicts {prediction_type}; ddim "
            f"with v_prediction can. Received: alphas={alphas[0]}, ..., {alphas[-1]}"
        )
