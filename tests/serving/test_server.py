"""A server that is killed loses nothing that it has answered; a port that is taken is told."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from keras_diffusion.serving.server import bind, log_handler

SERVER = Path(__file__).with_name("fake_server.py")
KILLS = 2
LOGGERS = ("keras_diffusion.prompts.reading", "keras_diffusion.serving.worker")


@pytest.fixture
def run(tmp_path):
    """Gives a function that starts the server of a folder, and returns the process and its address."""
    processes = []

    def run():
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(SERVER), str(tmp_path)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(address, fields=None):
    headers = {"Content-Type": "application/json"}
    body = None if fields is None else json.dumps(fields).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=20) as answer:
        return answer.read()


def jobs(address):
    return {job["id"]: job for job in json.loads(ask(f"{address}/v1/jobs?limit=500"))["jobs"]}


def done(address):
    return {id: job for id, job in jobs(address).items() if job["state"] == "done"}


def more_done(address, count):
    return len(done(address)) > count


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_killed_loses_nothing_that_it_answered(run):
    answered, before = {}, {}
    for _ in range(KILLS):
        process, address = run()
        for i in range(6):
            fields = {"prompt": f"{i}", "num_steps": 10}
            answered[json.loads(ask(f"{address}/v1/jobs", fields))["id"]] = fields
        wait_for(partial(more_done, address, len(before) + 1))
        before = done(address)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process, address = run()
    wait_for(lambda: all(job["finished"] for job in jobs(address).values()))
    after = jobs(address)
    assert after.keys() == answered.keys()
    assert {job["state"] for job in after.values()} == {"done"}
    assert {id: after[id] for id in before} == before  # drawn once
    for id, job in after.items():
        assert answered[id].items() <= job["arguments"].items()
        assert ask(address + job["images"][0]).startswith(b"\x89PNG")
    process.terminate()
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"Give another --port or --host. Received: '127.0.0.1', port {port}"):
            bind("127.0.0.1", port)


def test_the_log_quotes_no_prompts():
    said = {name: log_handler().filter(logging.makeLogRecord({"name": name})) for name in LOGGERS}
    assert list(map(bool, said.values())) == [False, True]
