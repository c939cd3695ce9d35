"""Races every contender on one GPU, in under nine minutes, without downloads: Stable Diffusion on random weights.

    python benchmarks/gpu.py --json gpu.jsonl                                    # on a card
    python benchmarks/gpu.py --model sdxl --size 1024 --steps 30 --batches 1 --json gpu.jsonl
    python benchmarks/gpu.py --size 64 --steps 2 --dtype float32 --batches 1     # a dry run on a processor
    python benchmarks/report.py gpu.jsonl                                        # the table

Each contender is one process, and all stay in memory: they compile at the same time, then take turns A B C A B C. A
line of JSON is printed, and added to the file, after every result, so that a run that is cut short keeps what it has.
On a card of 16 GB name fewer contenders, or `--alone`, which holds one at a time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from run import VARIABLES, machine

CONTENDERS = {  # name → module in peers/, whether it compiles, environment variables, the package it needs
    "diffusers": ("diffusers", False, {}, "diffusers"),
    "diffusers-compiled": ("diffusers", True, {}, "diffusers"),
    "jax": ("ours", True, {"KERAS_BACKEND": "jax"}, "jax"),
    "torch": ("ours", False, {"KERAS_BACKEND": "torch"}, "torch"),
    "torch-compiled": ("ours", True, {"KERAS_BACKEND": "torch"}, "torch"),
    "tensorflow-xla": ("ours", True, {"KERAS_BACKEND": "tensorflow"}, "tensorflow"),
}
FIRST_LIMIT, LIMIT = 240, 60  # seconds that a question may take, the first time and afterwards
QUESTIONS = {  # question → whether it is asked of ours alone, and how often: "rounds" or once
    "latents": (False, True),  # prompt → latents
    "profile": (False, False),  # the same under the profiler
    "decode": (False, True),  # latents → image
    "image": (False, True),  # prompt → image, for each number of images
    "bundled": (True, False),  # the bundled model's image in half precision and in float32
    "precision": (True, False),  # the latents in half precision and in float32
    "train": (False, True),  # ten steps of training a LoRA
}


class Worker:
    """A contender in its own process, which answers one question at a time until it fails or is late."""

    def __init__(self, name, options):
        peer, compiled, variables, _ = CONTENDERS[name]
        self.name, self.answers, self.error = name, Queue(), None
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", peer, json.dumps({**options, "compiled": compiled})],
            env={**os.environ, **VARIABLES, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.listener = Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self):
        with self.process.stdout as lines:
            for line in lines:
                self.answers.put(json.loads(line))
        self.answers.put({"error": f"exit status {self.process.wait()}"})

    def ask(self, question, batch=1):
        if not self.error:
            self.process.stdin.write(json.dumps([question, batch]) + "\n")
            self.process.stdin.flush()

    def answer(self, limit):
        """The answer as a dict, which holds `error` where there is none."""
        if not self.error:
            try:
                answer = self.answers.get(timeout=limit)
            except Empty:
                answer = {"error": f"no answer within {limit} s"}
            self.error = answer.get("error")
            if not self.error:
                return answer
            self.stop()
        return {"error": self.error}

    def stop(self):
        self.process.kill()
        self.process.stdin.close()
        self.listener.join()


def work(peer, options):
    """The other end of a `Worker`."""
    from importlib import import_module

    channel, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    answers = import_module(f"peers.{peer}").gpu(**options)
    print(json.dumps({"seconds": round(time.perf_counter() - start, 2)}), file=channel, flush=True)
    for line in sys.stdin:
        question, batch = json.loads(line)
        start = time.perf_counter()
        try:
            found = answers[question](batch) or {}
        except Exception as error:  # the other questions remain
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        seconds = round(time.perf_counter() - start, 4)
        print(json.dumps({"seconds": seconds, **found}), file=channel, flush=True)


def race(workers, question, batch, rounds, report):
    """Asks all at once, which lets them compile, then in turns; reports a row for each. Without rounds: one by one."""
    first = {}
    for group in [workers] if rounds else [[worker] for worker in workers]:
        for worker in group:
            worker.ask(question, batch)
        first |= {worker.name: worker.answer(FIRST_LIMIT) for worker in group}
    turns = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            if "failed" not in first[worker.name]:
                worker.ask(question, batch)
                turns[worker.name].append(worker.answer(LIMIT))
    for worker in workers:
        last = (turns[worker.name] or [first[worker.name]])[-1]
        row = {"stage": question, "batch": batch, "contender": worker.name, **last}
        row["first_seconds"] = first[worker.name].get("seconds")
        if "error" not in last and "failed" not in last and rounds:
            values = [turn["seconds"] for turn in turns[worker.name]]
            row |= {"seconds": round(statistics.median(values), 4), "seconds_all": values}
        report(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help="default: all that can run")
    parser.add_argument("--model", choices=["sd15", "sdxl"], default="sd15")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=50, help="of an image")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], help="numbers of images")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), metavar="NAME")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender, after one to warm up")
    parser.add_argument("--minutes", type=float, default=8.5, help="no new question is asked after so long")
    parser.add_argument("--alone", action="store_true", help="one contender in memory at a time")
    parser.add_argument("--json", type=Path, help="file to add the measurements to")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work[0], json.loads(options.work[1]))
    started = time.perf_counter()
    names = options.contenders or [name for name, row in CONTENDERS.items() if find_spec(row[3])]
    shape = {name: getattr(options, name) for name in ("model", "size", "steps", "dtype")}
    described = machine()

    def report(row):
        row = {**shape, "after": round(time.perf_counter() - started, 1), **row}
        print(json.dumps(row), flush=True)
        if options.json:
            with options.json.open("a") as file:
                print(json.dumps({**described, **row}), file=file)

    print(json.dumps(described), flush=True)
    for group in [[name] for name in names] if options.alone else [names]:
        workers = [Worker(name, shape) for name in group]
        for worker in workers:
            report({"stage": "build", "contender": worker.name, **worker.answer(FIRST_LIMIT)})
        ours = [worker for worker in workers if CONTENDERS[worker.name][0] == "ours"]
        questions = [
            (ours if ours_alone else workers, question, batch, options.rounds * timed)
            for question, (ours_alone, timed) in QUESTIONS.items()
            if question in options.questions
            for batch in (options.batches if question == "image" else options.batches[:1])
        ]
        for who, question, batch, rounds in questions:
            if time.perf_counter() - started < 60 * options.minutes:
                race(who, question, batch, rounds, report)
        for worker in workers:
            worker.stop()


if __name__ == "__main__":
    main()
