"""Compares the latents of the fast engines with those of the plain path, at full size, after every step.

    python benchmarks/distance.py --size 256
    python benchmarks/distance.py --size 512 --engines xla openvino     # some ten minutes on two cores

The plain path is the backend's graph with direct convolutions and attention over all positions at once, in float32.
Stable Diffusion 1.5 on random weights, guided, from the same latents and context.
"""

import argparse
import time

import numpy as np
from peers import ours

from keras_diffusion import DiffusionModel
from keras_diffusion.engines.engine import Engine
from keras_diffusion.engines.plan import Plan
from keras_diffusion.engines.stages import Conditions
from keras_diffusion.networks import operations
from keras_diffusion.sampling.samplers import build

ENGINES = {"plain": False, "graph": "auto", "xla": True, "openvino": "openvino"}  # name → jit_compile


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES)[1:], default=["graph", "xla"])
    options = parser.parse_args()
    network, table = DiffusionModel(), build(options.sampler, options.steps)
    latents, context = ours.arrays(options.size, 1)
    conditions = Conditions(context, np.full(1, ours.GUIDANCE, "float32"))
    chunks = operations.SCORES
    exact = []
    for name in ["plain", *options.engines]:
        operations.SCORES = chunks if exact else np.inf
        start = time.perf_counter()
        steps = [x for *_, x in Engine(ENGINES[name]).denoise(network, latents, conditions, Plan(table))]
        exact = exact or steps
        largest = [np.abs(x - y).max() for x, y in zip(steps, exact, strict=True)]
        print(
            f"{name}: {time.perf_counter() - start:.0f} s; latents of deviation {steps[-1].std():.2f}, largest "
            f"{np.abs(steps[-1]).max():.2f}; largest difference {largest[-1]:.1e}, of any step {max(largest):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
