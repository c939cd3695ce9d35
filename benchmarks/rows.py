"""Times the kinds of rows of a denoising loop at full size, and adds up what a plan of them takes for an image.

    python benchmarks/rows.py                           # estimates, at 512 × 512
    python benchmarks/rows.py --size 256 --check        # and one plan run as it is

A row runs the whole diffusion model or its shallow end (`deep_cache`), for the negative prompt too or for the prompt
alone (`guidance_interval`). Stable Diffusion 1.5 on random weights; decoding is added to every plan.
"""

import argparse
import statistics
import time

import numpy as np
from peers import ours

from keras_diffusion import DiffusionModel
from keras_diffusion.engines.engine import Engine
from keras_diffusion.engines.plan import Plan
from keras_diffusion.engines.stages import Conditions
from keras_diffusion.sampling.samplers import build, rows_between, rows_of_every

PLAIN = {"sampler": "ddim", "num_steps": 50, "interval": (0, 1), "n": 1}
FAST = {"sampler": "dpmpp_2m", "num_steps": 20}
PLANS = [PLAIN, *({**FAST, "interval": interval, "n": n} for interval in ((0, 1), (0.2, 1)) for n in (1, 2, 3, 5))]
MIXED = np.array([[0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 0, 0]], bool)  # guided and deep: every kind of row


def kinds(sampler, num_steps, interval, n):
    """The table of a plan, and of each of its rows whether it is guided and deep."""
    table = build(sampler, num_steps)
    guided = rows_between(table.steps, *interval)
    return table, np.stack([guided, rows_of_every(table.steps, n, guided)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--engine", choices=["auto", "xla", "openvino"], default="auto")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="run the last plan but one, and five plain steps")
    options = parser.parse_args()
    jit_compile = True if options.engine == "xla" else options.engine
    latents, context = ours.arrays(options.size, 1)
    conditions = Conditions(context, np.full(1, ours.GUIDANCE, "float32"))
    plain, engine = DiffusionModel(), Engine(jit_compile)

    def timed(table, rows):
        """Seconds of each row."""
        guided, deep = rows
        loop = engine.denoise(plain, latents, conditions, Plan(table, guided=guided, deep=deep))
        seconds = []
        for _ in rows.T:
            start = time.perf_counter()
            next(loop)
            seconds.append(time.perf_counter() - start)
        return seconds

    table = build("dpmpp_2m", MIXED.shape[1])
    timed(table, MIXED)  # compiles
    rounds = [timed(table, MIXED) for _ in range(options.rounds)]
    decode = ours.decode(options.size, 1, jit_compile)
    decode()
    start = time.perf_counter()
    decode()
    decoding = time.perf_counter() - start
    cost = {}
    for kind in {tuple(column) for column in MIXED.T}:
        chosen = np.equal(MIXED.T, kind).all(axis=1)
        cost[kind] = statistics.median(np.array(rounds)[:, chosen].ravel())
        print(f"{'whole' if kind[1] else 'shallow'}, {'guided' if kind[0] else 'prompt alone'}: {cost[kind]:.2f} s")
    print(f"decoding: {decoding:.1f} s\n\n| sampler | steps | guidance_interval | deep_cache | seconds | faster |")
    print("|---|---|---|---|---|---|")

    def estimate(rows):
        return sum(cost[tuple(row)] for row in rows.T)

    exact = estimate(kinds(**PLAIN)[1]) + decoding
    for plan in PLANS:
        seconds = estimate(kinds(**plan)[1]) + decoding
        print("|", " | ".join(map(str, plan.values())), f"| {seconds:.1f} | {exact / seconds:.1f} |")
    if options.check:
        for plan in ({**PLAIN, "num_steps": 5}, PLANS[-2]):
            table, rows = kinds(**plan)
            timed(table, rows[:, :1])  # the plain network is compiled, too
            print(f"{plan}: {sum(timed(table, rows)):.1f} s, expected {estimate(rows):.1f} s")


if __name__ == "__main__":
    main()
