"""Compares the networks of Stable Diffusion at their full size with diffusers and transformers, on random weights.

    python tests/golden/full_size.py build                      # seconds and peak memory of building the networks
    python tests/golden/full_size.py compare text_encoder       # largest deviation, in float32
    python tests/golden/full_size.py compare diffusion_model --size 64
    python tests/golden/full_size.py compare decoder --architecture sd21

Needs diffusers, transformers and torch. Linux.
"""

import argparse
import resource
import time
from pathlib import Path

import keras
import networks
import numpy as np

from keras_diffusion.architectures import ARCHITECTURES
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.networks.timesteps import timestep_embedding

NETWORKS = {
    "text_encoder": TextEncoder,
    "diffusion_model": DiffusionModel,
    "image_encoder": ImageEncoder,
    "decoder": Decoder,
}
CALLS = {
    "text_encoder": lambda size: {"batch": 2, "words": 20},
    "diffusion_model": lambda size: {"size": (size, size), "timesteps": (981, 21), "length": 77},
    "image_encoder": lambda size: {"batch": 1, "size": (size, size)},
    "decoder": lambda size: {"batch": 1, "size": (size, size)},
}


def peak():
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def build(architecture):
    """Prints how long each network takes and what memory, beside its weights' own."""
    keras.ops.convert_to_numpy(keras.layers.Dense(1)(np.ones((1, 1))))  # the backend is awake
    models, before = [], resident()
    start, work = time.perf_counter(), time.process_time()
    for network, kind in NETWORKS.items():
        models.append(kind(architecture=architecture, initialize=False))
        print(f"{network}: {models[-1].count_params():,} parameters, after {time.perf_counter() - start:.1f} s")
    weights, memory = 4 * sum(model.count_params() for model in models) / 1e6, peak() - before
    print(
        f"all: {time.process_time() - work:.1f} s of processor time; {weights:.0f} MB of weights, "
        f"at most {memory:.0f} MB in use, {memory / weights:.2f} times the weights"
    )


def compare(case):
    """Prints the largest deviation of our network from the reference."""
    values, expected = list(networks.inputs(case, case.calls[0])), reference(case)
    start = time.perf_counter()
    model = NETWORKS[case.network](architecture=case.architecture, initialize=False)
    built = time.perf_counter() - start
    networks.fill(model, case.network, case.architecture)
    if case.network == "diffusion_model":
        values[1] = timestep_embedding(values[1], case.architecture.diffusion_model.frequencies)
    start = time.perf_counter()
    output = keras.ops.convert_to_numpy(model(values if len(values) > 1 else values[0]))
    error = np.abs(output - expected)
    print(
        f"{case.architecture.name} {case.network} {output.shape}: largest deviation {error.max():.1e}, "
        f"mean {error.mean():.1e}, relative {np.linalg.norm(error) / np.linalg.norm(expected):.1e}, "
        f"output up to {np.abs(expected).max():.2f}, deviation {expected.std():.2f}; "
        f"built in {built:.1f} s, computed in {time.perf_counter() - start:.1f} s, peak {peak():.0f} MB"
    )


def reference(case):
    """The reference's output, in float32; its weights are gone afterwards."""
    import make_networks
    import torch

    build, call = make_networks.REFERENCES[case.network]
    torch.nn.init.kaiming_uniform_ = torch.nn.init.uniform_ = torch.nn.init.normal_ = lambda tensor, *_, **__: tensor
    with torch.no_grad():
        model = build(case.architecture).eval()
        make_networks.fill(model)
        return call(model, *map(torch.from_numpy, networks.inputs(case, case.calls[0]))).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["build", "compare"])
    parser.add_argument("network", nargs="?", choices=NETWORKS, help="which network to compare")
    parser.add_argument("--architecture", default="sd15", choices=ARCHITECTURES)
    parser.add_argument("--size", type=int, default=32, help="rows and columns of the latents")
    options = parser.parse_args()
    architecture = ARCHITECTURES[options.architecture]
    if options.task == "build":
        build(architecture)
    else:
        compare(networks.Case(options.network, "full", architecture, (CALLS[options.network](options.size),)))
