"""Times loading Stable Diffusion 1.5 from a folder, ours and diffusers' in turns A B A B, each in a new process.

    python benchmarks/load.py                        # makes the folder first: 4.3 GB of random weights
    python benchmarks/load.py --dtype float16        # stored in half the space, loaded in float32
    python benchmarks/load.py --rounds 5

From files in the page cache and memory that the host has given, to all networks in float32; imports not included.
diffusers maps files stored in the dtype that it wants: it returns before anything has been read. `returned` is when the
call did, `ready` when every weight has also been used once: both sum each of them. `memory_mb` is the peak above what
the imports took.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from prepare import checkpoint, wake_memory
from run import machine

CONTENDERS = ("ours", "diffusers")
FIGURES = ("returned", "ready", "cpu", "memory_mb")


def ours(folder):
    import keras

    from keras_diffusion import StableDiffusion

    keras.ops.convert_to_numpy(keras.ops.zeros(1))  # the backend is awake

    def load():
        model = StableDiffusion.from_preset(folder)
        return model.text_encoder, model.diffusion_model, model.image_encoder, model.decoder

    def read(networks):
        for network in networks:
            for variable in network.variables:
                float(keras.ops.sum(variable))

    return load, read


def diffusers(folder):
    import torch
    from diffusers import StableDiffusionPipeline

    torch.zeros(1)

    def load():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        return pipeline.text_encoder, pipeline.unet, pipeline.vae

    def read(networks):
        for network in networks:
            for parameter in network.parameters():
                float(parameter.detach().sum())

    return load, read


def measure(contender, folder):
    """Loads once and returns the figures."""
    load, read = {"ours": ours, "diffusers": diffusers}[contender](folder)
    wake_memory()
    memory, processor, start = peak(), time.process_time(), time.perf_counter()
    networks = load()
    returned = time.perf_counter() - start
    read(networks)
    figures = returned, time.perf_counter() - start, time.process_time() - processor, peak() - memory
    return {name: round(figure, 3) for name, figure in zip(FIGURES, figures, strict=True)}


def peak():
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def child(contender, dtype):
    command = [sys.executable, __file__, "--only", contender, "--dtype", dtype]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def warm(folder):
    """Reads all files, so that they are in the page cache where there is room for them."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def race(folder, dtype, rounds):
    """Returns the medians of both contenders, in the order of `CONTENDERS`, and prints every turn."""
    turns = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender in CONTENDERS:
            warm(folder)
            turns[contender].append(child(contender, dtype))
            print(contender.ljust(10), *(f"{turns[contender][-1][name]:10.1f}" for name in FIGURES), flush=True)
    return [[statistics.median(turn[name] for turn in turns[contender]) for name in FIGURES] for contender in turns]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CONTENDERS, help="load once, here, and print one line of JSON")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="what weights are stored in")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    options = parser.parse_args()
    folder = checkpoint(options.dtype)
    if options.only:
        return print(json.dumps(measure(options.only, folder)))
    described = machine()
    print(described["machine"], described["packages"])
    print(" " * 10, *(f"{name:>10}" for name in FIGURES))
    mine, theirs = race(folder, options.dtype, options.rounds)
    print("ratio".ljust(10), *(f"{a / b:10.2f}" for a, b in zip(mine, theirs, strict=True)))


if __name__ == "__main__":
    main()
