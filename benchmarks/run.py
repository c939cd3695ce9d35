"""Races contenders against each other on this machine, in turns A B A B, and prints medians and ratios.

    python benchmarks/run.py step                                   # one guided step of Stable Diffusion 1.5
    python benchmarks/run.py decode --size 256 --contenders diffusers tensorflow-xla
    python benchmarks/run.py --list

The first contender is the one that ratios refer to. Every contender runs in its own process; two are in memory at a
time, the first and the one it races. `seconds` are what counts on a quiet machine; on a busy one look at `cpu`, the
processor time of all threads. `--json` adds every measurement to a file, one JSON object a line, for `report.py`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path

from contenders import CONTENDERS
from prepare import checkpoint, environment, wake_memory

HERE = Path(__file__).parent
FIGURES = ("seconds", "cpu", "peak_mb")
PACKAGES = ("diffusers", "jax", "keras", "openvino", "tensorflow", "torch", "transformers")
# Of every process: quiet; no more of a GPU than it needs, because two contenders are on it; and torch's threads sleep
# while they wait, which on a busy machine makes a small model ten times as fast.
VARIABLES = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
QUESTIONS = {  # question → None, or what counts of a process that only lives for its first turn
    "step": None,
    "decode": None,
    "encode": None,
    "image": None,
    "cold": lambda process: {**process.first, **{name: process.first[f"total_{name}"] for name in ("seconds", "cpu")}},
    "build": lambda process: process.first,
}


class Process:
    """A contender that is built, has had its first turn, and waits for the next."""

    def __init__(self, name, question, options):
        peer, own_options, variables = CONTENDERS[name]
        python = environment(peer)
        if QUESTIONS[question]:  # every turn is a new process
            wake_memory()
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [python, HERE / "contender.py", peer, question, json.dumps({**options, **own_options})],
            env={**os.environ, **VARIABLES, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.built = self.answer()
        self.first = self.turn()

    def turn(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A contender failed, see above; exit status {self.process.wait()}.")
        return {**json.loads(line), "total_seconds": round(time.perf_counter() - self.started, 3)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def racer(name, question, options):
    """Yields a process that has had its first turn, and a function for every turn after it."""
    with Process(name, question, options) as process:
        if not QUESTIONS[question]:
            yield process, process.turn
            return

    def turn():
        with Process(name, question, options) as fresh:
            return QUESTIONS[question](fresh)

    yield process, turn  # it has had the files read from the disk


def race(question, names, rounds, options):
    """Yields, for every contender after the first, what both measured in alternation."""
    with racer(names[0], question, options) as (first, first_turn):
        for name in names[1:]:
            with racer(name, question, options) as (other, turn):
                turns = [(first_turn(), turn()) for _ in range(rounds)]
            yield {
                "stage": question, **options, "contender": name, "against": names[0],
                **{f"{when}_{k}{of}": v
                   for of, process in (("", other), ("_against", first))
                   for when in ("built", "first") for k, v in getattr(process, when).items()},
                **{k: v for figure in FIGURES for k, v in compared(figure, turns).items()},
            }  # fmt: skip


def compared(figure, turns):
    """Medians of a figure for both, their ratio, and all of its values."""
    against, values = ([turn[figure] for turn in column] for column in zip(*turns, strict=True))
    medians = statistics.median(values), statistics.median(against)
    return {
        f"{figure}_ratio": round(medians[0] / medians[1], 3),
        figure: medians[0],
        f"{figure}_against": medians[1],
        f"{figure}_all": [values, against],
    }


def machine():
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = {line.partition(": ")[2] for line in lines if line.startswith("model name")} or {platform.processor()}
    try:
        gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
        names |= {gpu.partition(" (")[0] for gpu in gpus if gpu.startswith("GPU ")}
    except FileNotFoundError:
        pass
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{', '.join(sorted(names))}, {os.cpu_count()} cores, {platform.platform()}",
        "packages": {package.name: package.version for package in distributions() if package.name in PACKAGES},
    }


def answers(name, question):
    return hasattr(import_module(f"peers.{CONTENDERS[name][0]}"), question)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", choices=QUESTIONS, default="step")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    parser.add_argument("--steps", type=int, default=20, help="of a whole image")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="float16: mixed, on Keras")
    parser.add_argument("--preset", type=Path, help="folder of a model, for image and build; None makes a random one")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender, after one to warm up")
    parser.add_argument("--json", type=Path, help="file to add the measurements to")
    parser.add_argument("--list", action="store_true", help="name the contenders")
    options = parser.parse_args()
    if options.list:
        return print(*CONTENDERS, sep="\n")
    names = [name for name in options.contenders if answers(name, options.question)]
    shape = {name: getattr(options, name) for name in ("size", "batch", "steps", "dtype")}
    if options.question in ("image", "build"):
        shape["preset"] = str(options.preset or checkpoint())
    described = machine()
    print(described["machine"], described["packages"])
    print("contender".ljust(20), *(f"{name:>10}{'against':>10}{'ratio':>7}" for name in FIGURES), "   built    first")
    for row in race(options.question, names, options.rounds, shape):
        figures = [f"{row[name]:10.1f}{row[f'{name}_against']:10.1f}{row[f'{name}_ratio']:7.2f}" for name in FIGURES]
        figures += [f"{row[name]:8.1f}" for name in ("built_seconds", "first_seconds")]
        print(row["contender"].ljust(20), *figures, flush=True)
        if options.json:
            with options.json.open("a") as file:
                print(json.dumps({**described, **row}), file=file)


if __name__ == "__main__":
    main()
