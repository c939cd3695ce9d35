"""Races contenders against each other on this machine, in turns A B A B, and prints medians and ratios.

    python benchmarks/run.py step                                   # one guided step of Stable Diffusion 1.5
    python benchmarks/run.py decode --size 256 --contenders diffusers tensorflow-xla
    python benchmarks/run.py --list

The first contender is the one that ratios refer to. Every contender runs in its own process on random weights; two are
in memory at a time, the first and the one it races. `seconds` are what counts on a quiet machine; on a busy one look at
`cpu`, the processor time of all threads. `--json` adds every measurement to a file, one JSON object a line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
FIGURES = ("seconds", "cpu", "peak_mb")
PACKAGES = ("keras", "tensorflow", "jax", "torch", "openvino", "diffusers")


def keras(backend, jit_compile="auto", **environment):
    return "ours", {"jit_compile": jit_compile}, {"KERAS_BACKEND": backend, **environment}


CONTENDERS = {  # name → class, options, environment
    "diffusers": ("diffusers", {"convert": "eager"}, {}),
    "diffusers-compiled": ("diffusers", {"convert": "compiled"}, {}),
    "diffusers-openvino": ("diffusers", {"convert": "openvino"}, {}),
    "tensorflow": keras("tensorflow", False),
    "tensorflow-onednn": keras("tensorflow", False, TF_ENABLE_ONEDNN_OPTS="1"),
    "tensorflow-eigen": keras("tensorflow", False, TF_ENABLE_ONEDNN_OPTS="0"),
    "tensorflow-xla": keras("tensorflow", True),
    "jax": keras("jax"),
    "openvino": keras("tensorflow", "openvino"),
    "torch": keras("torch", False),
    "torch-compiled": keras("torch", True),
}


class Process:
    """A contender that is built and waits for its turn."""

    def __init__(self, name, stage, size, batch):
        contender, options, environment = CONTENDERS[name]
        options = json.dumps({"size": size, "batch": batch, **options})
        self.process = subprocess.Popen(
            [sys.executable, HERE / "contender.py", contender, stage, options],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
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
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def race(stage, names, rounds, **shape):
    """Yields, for every contender after the first, what both measured in alternation."""
    with Process(names[0], stage, **shape) as first:
        for name in names[1:]:
            with Process(name, stage, **shape) as other:
                turns = [(first.turn(), other.turn()) for _ in range(rounds)]
                yield {"stage": stage, **shape, "contender": name, "against": names[0],
                       **{f"built_{k}": v for k, v in other.built.items()},
                       **{f"first_{k}": v for k, v in other.first.items()},
                       **{k: v for figure in FIGURES for k, v in compared(figure, turns).items()}}  # fmt: skip


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
    names = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{', '.join(names) or platform.processor()}, {os.cpu_count()} cores, {platform.platform()}",
        "packages": {package: version(package) for package in PACKAGES},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="?", choices=["step", "decode", "encode"], default="step")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender, after one to warm up")
    parser.add_argument("--json", type=Path, help="file to add the measurements to")
    parser.add_argument("--list", action="store_true", help="name the contenders")
    options = parser.parse_args()
    if options.list:
        return print(*CONTENDERS, sep="\n")
    described = machine()
    print(described["machine"], described["packages"])
    print("contender".ljust(20), *(f"{name:>10}{'against':>10}{'ratio':>7}" for name in FIGURES), "   built    first")
    race_options = {"size": options.size, "batch": options.batch}
    for row in race(options.stage, options.contenders, options.rounds, **race_options):
        figures = [f"{row[name]:10.1f}{row[f'{name}_against']:10.1f}{row[f'{name}_ratio']:7.2f}" for name in FIGURES]
        figures += [f"{row[name]:8.1f}" for name in ("built_seconds", "first_seconds")]
        print(row["contender"].ljust(20), *figures, flush=True)
        if options.json:
            with options.json.open("a") as file:
                print(json.dumps({**described, **row}), file=file)


if __name__ == "__main__":
    main()
