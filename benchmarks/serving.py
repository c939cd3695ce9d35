"""Loads the server with many clients, and compares it with a plain loop.

    python benchmarks/serving.py                    # 16 clients for 5 minutes
    python benchmarks/serving.py --seconds 60

Each client hands in a job, follows its events to the end, fetches its image, and begins again; one more asks for
progress all the time. Before and after them, a plain loop draws the same images in a process of its own.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter

CALL = {"prompt": "a slice of pizza", "num_steps": 25}
LOOP = """
import sys, time
from keras_diffusion import StableDiffusion
model = StableDiffusion.from_preset("emoji")
call = {"prompt": "a slice of pizza", "num_steps": 25, "verbose": 0}
model.text_to_image(**call, seed=0)
begun, count = time.monotonic(), 0
while time.monotonic() - begun < float(sys.argv[1]):
    count += 1
    model.text_to_image(**call, seed=count)
print(count / (time.monotonic() - begun))
"""


def ask(address, body=None):
    headers = {"Content-Type": "application/json"}
    body = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=600) as answer:
        return answer.read()


def draw(address, **fields):
    """Draws a job, and returns it as its last event says."""
    id = json.loads(ask(f"{address}/v1/jobs", {**CALL, **fields}))["id"]
    return json.loads(ask(f"{address}/v1/jobs/{id}/events").rstrip().rpartition(b"data: ")[2])


def client(address, end, jobs):
    while time.monotonic() < end:
        job = draw(address)
        assert ask(address + job["images"][0]).startswith(b"\x89PNG")
        jobs.append(job)


def watch(address, end, seconds):
    while time.monotonic() < end:
        begun = time.monotonic()
        ask(f"{address}/sdapi/v1/progress")
        seconds.append(time.monotonic() - begun)
        time.sleep(0.05)


def resident(address):
    return int(re.search(rb"process_resident_memory_bytes (\d+)", ask(f"{address}/metrics"))[1])


def loop(seconds):
    """Returns how many images a plain loop draws in a second."""
    command = [sys.executable, "-c", LOOP, str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def load(address, clients, duration):
    """Runs the clients, and returns what was measured."""
    for _ in range(2):
        draw(address)
    jobs, seconds, before, end = [], [], resident(address), time.monotonic() + duration
    threads = [threading.Thread(target=client, args=(address, end, jobs)) for _ in range(clients)]
    threads.append(threading.Thread(target=watch, args=(address, end, seconds)))
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(jobs) / (time.monotonic() - begun)
    states, twice = Counter(job["state"] for job in jobs), len(jobs) - len({job["id"] for job in jobs})
    seconds.sort()
    long = json.loads(ask(f"{address}/v1/jobs", {**CALL, "num_steps": 150}))["id"]
    while not (step := json.loads(ask(f"{address}/v1/jobs/{long}")))["step"]:
        time.sleep(0.01)
    cancelled = json.loads(ask(f"{address}/v1/jobs/{long}/cancel", {}))
    ended = json.loads(ask(f"{address}/v1/jobs/{long}/events").rstrip().rpartition(b"data: ")[2])
    return {
        "jobs": dict(states),
        "doubled": twice,
        "images per second": round(rate, 3),
        "progress, median": f"{1000 * seconds[len(seconds) // 2]:.0f} ms",
        "progress, 99 %": f"{1000 * seconds[int(0.99 * len(seconds))]:.0f} ms of {len(seconds)} calls",
        "memory": f"{before / 2**20:.0f} MB before, {resident(address) / 2**20:.0f} MB after",
        "steps when cancelled": f"{step['step']} seen, {cancelled['step']} asked, {ended['state']} at {ended['step']}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    rates = [loop(options.seconds / 2)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "keras_diffusion", "serve", "--port", "0", "--jobs", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                measured = load(server.stdout.readline().strip(), options.clients, options.seconds)
            finally:
                server.terminate()
    rates.append(loop(options.seconds / 2))
    measured["plain loop, images per second"] = f"{rates[0]:.3f} before, {rates[1]:.3f} after"
    measured["server / loop"] = round(measured["images per second"] / (sum(rates) / 2), 3)
    for name, value in measured.items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
