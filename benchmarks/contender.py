"""One contender of a race, in its own process: builds what a question asks for, then runs it on demand.

    python benchmarks/contender.py ours step '{"size": 512, "batch": 1, "dtype": "float32", "jit_compile": "auto"}'

Prints a line of JSON when it is built and another after every line it reads; `run.py` is at the other end.
"""

import json
import resource
import sys
import time
from importlib import import_module


def main(peer, question, options):
    def timed(function):
        seconds, processor = time.perf_counter(), time.process_time()
        result = function()
        figures = {"seconds": time.perf_counter() - seconds, "cpu": time.process_time() - processor}
        figures["total_cpu"] = time.process_time()
        figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}), file=channel, flush=True)
        return result

    channel, sys.stdout = sys.stdout, sys.stderr
    run = timed(lambda: getattr(import_module(f"peers.{peer}"), question)(**json.loads(options)))
    for _ in sys.stdin:
        timed(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
