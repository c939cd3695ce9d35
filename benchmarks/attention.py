"""Times self-attention at the largest feature map of Stable Diffusion 1.5, every way to compute it, in turns.

KERAS_BACKEND=tensorflow python benchmarks/attention.py
KERAS_BACKEND=tensorflow python benchmarks/attention.py --jit-compile
"""

import argparse
import statistics
import time

import keras
import numpy as np
from keras import ops

from keras_diffusion.engines.choice import COMPILING_RUNNERS, DEFAULT_RUNNERS, load_runner
from keras_diffusion.networks import layers, operations


def limited(scores):
    """`operations.attend` with another limit of scores in memory."""

    def attend(*inputs):
        operations.SCORES = scores
        return operations.attend(*inputs)

    return attend


def at_once(layer, *inputs):
    return ops.dot_product_attention(*inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jit-compile", action="store_true")
    options = parser.parse_args()
    heads, width = 8, 40
    shape = (options.batch, options.positions, heads, width)
    inputs = [ops.convert_to_tensor(x) for x in np.random.default_rng(0).standard_normal((3, *shape), "float32")]
    ways = {"all at once": limited(options.positions**2 + 1), "dot_product_attention": at_once}
    ways |= {f"{scores * 4 >> 20} MB of scores": limited(scores) for scores in (2**18, 2**19, 2**20, 2**21, 2**22)}
    runs, seconds = {}, {name: [] for name in ways}
    for name, attend in ways.items():
        compiled = load_runner((COMPILING_RUNNERS if options.jit_compile else DEFAULT_RUNNERS)[keras.backend.backend()])
        run = compiled(attend, layers.Attention(heads), int)
        runs[name] = lambda run=run: ops.convert_to_numpy(run(*inputs))
        runs[name]()
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    flops = 4 * options.batch * heads * width * options.positions**2
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{keras.backend.backend():12}{name:24}{median:8.3f} s{flops / median / 1e9:8.0f} GFLOP/s")


if __name__ == "__main__":
    main()
