"""What a race needs before it starts: an environment for every peer, and a checkpoint of random weights.

    python benchmarks/prepare.py        # everything at once; `run.py` makes what it needs by itself

Both are made once, under ~/.cache/keras-diffusion/benchmarks or the folder that KERAS_DIFFUSION_BENCHMARKS names.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CACHE = Path(os.environ.get("KERAS_DIFFUSION_BENCHMARKS") or Path.home() / ".cache/keras-diffusion/benchmarks")
MEMORY = 6 << 30  # bytes, a little more than any contender takes to load Stable Diffusion 1.5
ENVIRONMENTS = {  # peer → what pip installs where the environment that runs this has not got it
    "diffusers": ("diffusers>=0.35", "transformers>=4.50", "torch>=2.5", "openvino>=2025.1"),
    "keras_cv": ("--no-deps", "keras-cv==0.9.0", "dm-tree"),  # its other needs are ours, or unused here
    "stable_diffusion_cpp": ("stable-diffusion-cpp-python==0.4.7",),
}


def environment(peer):
    """Returns the Python that runs a peer, in an environment on top of this one: the same Keras for everyone."""
    if peer not in ENVIRONMENTS:
        return sys.executable
    folder = CACHE / "environments" / peer
    python, made = folder / ("Scripts" if os.name == "nt" else "bin") / "python", folder / "made.txt"
    recipe = "\n".join([sys.executable, *ENVIRONMENTS[peer]])
    if not made.exists() or made.read_text() != recipe:
        venv.create(folder, clear=True, with_pip=True)
        variables = {"base": str(folder), "platbase": str(folder)}
        below = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        Path(sysconfig.get_path("purelib", "venv", variables), "below.pth").write_text(below)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[peer]], check=True)
        made.write_text(recipe)
    return python


def checkpoint(dtype="float32"):
    """Returns a folder with random weights of Stable Diffusion 1.5, in diffusers layout: 4.3 GB, or half as much."""
    folder = CACHE / "checkpoints" / f"sd15-{dtype}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, dtype, folder], check=True)
    return folder


def wake_memory():
    """Has a process write to free memory and go: what the host of a virtual machine must provide first is slow to get.

    So much so, and for so random a contender, that it would be all that a race of loading shows.
    """
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({MEMORY}, 'u1')"], check=True)


def main(dtype, folder):
    """Writes a checkpoint, in a process that takes its memory with it."""
    from keras_diffusion import StableDiffusion
    from keras_diffusion.architectures import SD15

    partial = f"{folder}.{os.getpid()}"
    StableDiffusion(preset=SD15).save_to_preset(partial, dtype=dtype)
    os.rename(partial, folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        print(checkpoint(), *map(environment, ENVIRONMENTS), sep="\n")
