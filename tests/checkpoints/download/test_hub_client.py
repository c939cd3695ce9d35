"""Fetching with the real huggingface_hub, from a repository that a server on this machine holds."""

import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion.checkpoints import presets

pytest.importorskip("huggingface_hub", reason="huggingface_hub, the extra hub, is not installed")

TOKEN = "hf_secret"
COMMIT = "c" * 40
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INFO = re.compile(r"/api/models/(owner/\w+)/revision/([\w.]+)")
TREE = re.compile(r"/api/models/(owner/\w+)/tree/([\w.]+)")
FILE = re.compile(r"/(owner/\w+)/resolve/(\w+)/(.+)")


class Hub(ThreadingHTTPServer):
    """Serves the files in `files` as each repository; `misbehave` may answer in its place."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.misbehave, self.requests = {}, lambda handler, file: False, []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if "/owner/" in self.path:
            self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        info, file = INFO.match(self.path), FILE.match(self.path)
        name = file and file[3]
        if self.server.misbehave(self, name):
            return
        if info:
            siblings = [{"rfilename": name} for name in self.server.files]
            body = json.dumps({"id": info[1], "modelId": info[1], "sha": COMMIT, "siblings": siblings}).encode()
            self.answer(200, body, Content_Type="application/json")
        elif TREE.match(self.path):
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.files.items()
            ]
            self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        elif name in self.server.files:
            body = self.server.files[name]
            self.answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(body).hexdigest()}"')
        else:
            self.answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, body=b"", send=None, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:send])
        if send is not None:
            self.close_connection = True
        return True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def files(saved):
    return {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def running(serving):
    with serving(Hub()) as hub:
        yield hub


@pytest.fixture
def hub(running, files):
    running.__dict__.update(files=files | {"README.md": b"", "unet/code.py": b""}, requests=[])
    running.misbehave = lambda handler, file: False
    return running


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a process with the client for a server, and gives a function that asks it for a model."""
    processes = []

    def run(port, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        home = tmp_path_factory.mktemp("home")
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_TOKEN": TOKEN}
        environment |= {"KERAS_DIFFUSION_HOME": str(home / "ours"), "HF_HUB_DISABLE_XET": "1"} | variables
        command = [sys.executable, Path(__file__).with_name("client.py")]
        with (home / "log").open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            process = subprocess.Popen(command, env=environment, text=True, **pipes)
        processes.append(process)

        def ask(name, manifest=None, **variables):
            process.stdin.write(json.dumps([name, variables, manifest or {}]) + "\n")
            process.stdin.flush()
            outcome = json.loads(process.stdout.readline())
            said = (home / "log").read_text()
            assert TOKEN not in said + json.dumps(outcome)
            return outcome | {"log": said, "home": home}

        return ask

    yield run
    for process in processes:
        process.communicate()


@pytest.fixture(scope="module")
def fetch(start, running):
    return start(running.server_port)


def test_brings_a_model_that_loads(hub, fetch, small, build, networks, values):
    outcome = fetch("hf://owner/good@v1.0")
    assert outcome["error"] is None, outcome
    path = Path(outcome["path"])
    brought = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert brought == hub.files.keys() - {"README.md", "unet/code.py", "tokenizer/vocab.json", "tokenizer/merges.txt"}
    assert {token for _, _, token in hub.requests} == {f"Bearer {TOKEN}"}
    assert any("/revision/v1.0" in asked for _, asked, _ in hub.requests)
    blank = build(small)
    presets.read(path).load(**blank)
    for name, expected in values(networks).items():
        for place, array in values(blank)[name].items():
            np.testing.assert_array_equal(array, expected[place])

    hub.requests.clear()
    again = fetch("hf://owner/good@v1.0", KERAS_DIFFUSION_OFFLINE="1")
    assert again["path"] == outcome["path"], again
    assert fetch("hf://owner/other", KERAS_DIFFUSION_OFFLINE="1")["error"] == "OfflineError"
    assert not hub.requests
    hub.misbehave = lambda handler, file: handler.answer(503)
    assert fetch("hf://owner/good@v1.0", KERAS_DIFFUSION_OFFLINE="0")["error"] == "DownloadError"


def fail(status, files=False, **headers):
    """Answers so to what is asked about a repository, or about its weights."""
    return lambda handler, file: (file == WEIGHTS if files else not file) and handler.answer(status, **headers)


def cut(handler, file):
    return (
        file == WEIGHTS
        and handler.command == "GET"
        and handler.answer(200, handler.server.files[file], send=20, ETag='"e"', X_Repo_Commit=COMMIT)
    )


REFUSED = {  # what happens → how the server does it, and what the message says
    "a gated repository": (fail(403, files=True, X_Error_Code="GatedRepo"), "accept its licence on"),
    "a gated repository, without a token": (fail(401, files=True, X_Error_Code="GatedRepo"), "accept its licence on"),
    "a private repository": (fail(401, X_Error_Code="RepoNotFound"), "accept its licence on"),
    "no such repository": (fail(404, X_Error_Code="RepoNotFound"), "not there"),
    "no such revision": (fail(404, X_Error_Code="RevisionNotFound"), "not there"),
    "a file that went": (fail(404, files=True, X_Error_Code="EntryNotFound"), "not there"),
    "too many requests": (fail(429), "come back later"),
    "a server that fails": (fail(500), "answers 500"),
    "a file that fails": (fail(500, files=True), "answers 500"),
    "a file cut short": (cut, "connection failed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_explains_failures(hub, fetch, case):
    hub.misbehave, message = REFUSED[case]
    name = f"hf://owner/r{list(REFUSED).index(case)}"
    outcome = fetch(name, KERAS_DIFFUSION_OFFLINE="0")
    assert outcome["error"] == "DownloadError", outcome
    assert message in outcome["message"]
    hub.misbehave = lambda handler, file: False
    assert fetch(name)["error"] is None


def test_a_repository_without_a_model(hub, fetch):
    hub.files = {"README.md": b""}
    outcome = fetch("hf://owner/empty", KERAS_DIFFUSION_OFFLINE="0")
    assert outcome["error"] == "DownloadError"
    assert "no Stable Diffusion model" in outcome["message"]


def test_no_server(start):
    outcome = start(port=1)("hf://owner/name")
    assert outcome["error"] == "OfflineError"
    assert "cannot be reached" in outcome["log"]
    entry = {"sha256": "0" * 64, "bytes": 1}
    model = {"repository": "owner/name", "revision": COMMIT, "licence": "A Licence", "files": {"a.h5": entry}}
    outcome = start(port=1)("unreachable", {"unreachable": model}, KERAS_DIFFUSION_OFFLINE="0")
    assert outcome["error"] == "DownloadError"
    assert "Retrying" not in outcome["log"]


def test_the_clients_own_offline_mode(start, hub):
    outcome = start(hub.server_port, HF_HUB_OFFLINE="1")("hf://owner/name")
    assert outcome["error"] == "OfflineError"
    assert not hub.requests


CONTENT = b"weights"
BUILT_IN = {  # what the server does → error and message
    "all is well": (lambda handler, file: False, None, ""),
    "another file": (lambda handler, file: file and handler.answer(200, b"Weights", ETag='"x"', X_Repo_Commit=COMMIT),
                     "IntegrityError", "sha256"),
    "gated": (lambda handler, file: handler.answer(403, X_Error_Code="GatedRepo"), "DownloadError", "accept its"),
}  # fmt: skip


@pytest.mark.parametrize("case", BUILT_IN)
def test_built_in_files(hub, fetch, case):
    hub.files = {"a.h5": CONTENT}
    hub.misbehave, error, message = BUILT_IN[case]
    entry = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "bytes": len(CONTENT)}
    name = f"small_{case[:2].strip()}"
    model = {"repository": "owner/name", "revision": COMMIT, "licence": "A Licence", "files": {"a.h5": entry}}
    outcome = fetch(name, {name: model}, KERAS_DIFFUSION_OFFLINE="0")
    assert outcome["error"] == error, outcome
    assert message in outcome.get("message", "")
    kept = [file.name for file in (outcome["home"] / "ours" / name).rglob("*") if file.is_file()]
    assert kept == ([] if error else ["a.h5"])
