"""Reads what people send, changed by its structure: the answer is a model or an error of our own that names the file.

    python -m tests.checkpoints.fuzz                              # 10,000 cases of each reader, an hour
    python -m tests.checkpoints.fuzz --reader lora --count 300 --seed 7

A case is a sound file of which one to three values are replaced, dropped, repeated or nested, as the seed says. A line
of JSON says how it went; the exit code is not 0 after any other error, a second of processor time, or 64 MB of memory.
Cases: fuzz_json.py, fuzz_tensors.py and fuzz_texts.py. Damaged bytes are the matter of formats/fuzz.py.
"""

import argparse
import json
import logging
import math
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from keras_diffusion.errors import CheckpointError

from . import fuzz_json, fuzz_tensors, fuzz_texts

SECONDS, GROWTH = 1, 64_000  # of processor time; kB
WARM = 20  # cases before memory counts
MINE = (CheckpointError, FileNotFoundError)
PLAIN = (ValueError, TypeError)
READERS = {  # reader → (what writes a case and returns what reads it, the errors it may raise)
    **{name: (make, MINE) for name, make in {**fuzz_json.READERS, **fuzz_tensors.READERS}.items()},
    **{name: (make, PLAIN) for name, make in fuzz_texts.READERS.items()},
}


def fuzz(reader, count, seed, minutes=math.inf, first=0):
    """Returns what happened, and under "wrong" a list of what must not."""
    outcomes, wrong, slowest, memory, grown = Counter(), [], 0.0, 0, 0
    end = time.monotonic() + 60 * minutes
    for case in range(first, first + count):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as path:
            outcome, seconds, problem = _read(reader, Path(path), random.Random(f"{reader} {seed} {case}"))
        outcomes[outcome] += 1
        slowest, peak = max(slowest, seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory, grown = (peak, 0) if case < first + WARM else (memory, peak - memory)
        if problem or (case >= first + WARM and seconds > SECONDS) or grown > GROWTH:
            wrong.append(f"case {case}: {problem or f'{seconds:.2f} s, {grown} kB'}")
            memory = peak
    cost = {"slowest_ms": round(1e3 * slowest, 1), "memory_kb": grown}
    return {"reader": reader, "cases": sum(outcomes.values()), **outcomes, **cost, "wrong": wrong}


def _read(reader, path, dice):
    """What came out, the seconds that it took, and what is wrong with it."""
    make, allowed = READERS[reader]
    read, outcome, problem, begun = make(path, dice), "read", None, time.process_time()
    try:
        read()
    except Exception as error:
        outcome, place = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, allowed):
            problem = f"{error!r:.300} at {place.filename}:{place.lineno}"
        elif isinstance(error, CheckpointError) and str(path) not in str(error):
            problem = f"{error!r:.300} does not name its file"
    return outcome, time.process_time() - begun, problem


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=READERS, help="one of them")
    parser.add_argument("--count", type=int, default=10_000, help="cases of each reader")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end each reader after these, done or not")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case; with --count 1, that alone")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    options = parser.parse_args()
    logging.disable()
    np.seterr(all="ignore")
    wrong = 0
    for reader in [options.reader] if options.reader else READERS:
        found = fuzz(reader, options.count, options.seed, options.minutes, options.first)
        wrong += len(found["wrong"])
        print(json.dumps(found), flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
