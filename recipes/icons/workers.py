"""Runs a function on many tasks in processes of its own, which share nothing with the caller's (no JAX, no forks)."""

import importlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run(function, tasks, workers):
    """Returns [function(task) for task in tasks], worked out by at most `workers` processes at a time.

    Args:
        function: A function of a module of this folder.
        tasks: A list of what the function takes; anything that pickle writes.
        workers: Number of processes.
    """
    module = function.__module__ if function.__module__ != "__main__" else Path(sys.argv[0]).stem

    def work(task):
        command = [sys.executable, __file__, module, function.__name__]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        with process:
            process.stdin.write(pickle.dumps(task))
            process.stdin.close()
            try:
                result = pickle.load(process.stdout)
            except EOFError:
                raise RuntimeError(f"{module}.{function.__name__} failed; its error is above.") from None
        return result

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, tasks))


def main():
    module, function = sys.argv[1:]
    task = pickle.load(sys.stdin.buffer)
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    result = getattr(importlib.import_module(module), function)(task)
    pickle.dump(result, output, protocol=pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    main()
