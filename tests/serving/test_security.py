"""Hostile requests to a server on a socket: each gets an error, and the next good one is served."""

import logging
import socket
import threading
from contextlib import suppress

import pytest

from keras_diffusion.serving.calls import Limits
from keras_diffusion.serving.security import LOCAL, Rules
from keras_diffusion.serving.server import bind, make_server
from keras_diffusion.system.memory import resident_memory

from . import hostile

LIMITS = Limits(max_body=2**20, seconds_to_send=0.3, max_connections=20)
PATIENCE = 5  # seconds for an answer
CASES = dict(hostile.cases())
TOKEN = "a token of 24 characters"


@pytest.fixture(scope="module")
def port(module_start):
    """The port of a server."""
    listener = bind("127.0.0.1", 0)
    server = make_server(module_start(LIMITS).app, LIMITS)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port, *parts):
    """Sends bytes, and returns the status of the answer and its text; 0 if there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        answer = b""
        with suppress(ConnectionError):  # the server may have heard enough
            for part in parts:
                connection.sendall(part.replace(b"PORT", str(port).encode()))
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    return int(answer.split(b" ")[1]) if answer else 0, answer.decode("utf-8", "replace")


def test_there_are_enough_cases():
    assert len(CASES) >= 200


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_request_gets_an_error(port, case, caplog):
    with caplog.at_level(logging.DEBUG):
        status, answer = ask(port, CASES[case])
    assert 400 <= status < 500, answer
    assert "Traceback" not in answer
    assert hostile.SECRET not in caplog.text


def test_memory_is_flat_and_the_next_good_request_is_served(port):
    before = resident_memory()
    for content in CASES.values():
        if content[-1:] != b"{":  # the body that never ends
            ask(port, content)
    assert not before or resident_memory() - before < 2**25
    assert ask(port, hostile.GOOD)[0] == 202


@pytest.mark.parametrize("content", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost:PORT\r\nX: "])
def test_who_sends_slowly_is_let_go(port, content):
    assert ask(port, content)[0] == 0


def test_connections_have_a_limit(port):
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(LIMITS.max_connections)]
    status, _ = ask(port, hostile.request("GET", "/health"))
    for connection in held:
        connection.close()
    assert status == 503


def test_bodies_together_have_a_limit(start):
    client = start(LIMITS)
    gate = client.app.build_middleware_stack().app
    gate._held = 3 * LIMITS.max_body
    client.app.middleware_stack = gate
    answer = client.post("/v1/jobs", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")


@pytest.mark.parametrize(
    "shown", ["", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Basic !", "Basic eDp5", "Bearer", TOKEN, "Bearer \xff"]
)
def test_without_the_token_nothing_is_told(start, shown):
    client = start(rules=Rules(token=TOKEN))
    for path in ("/v1/jobs", "/v1/options", "/metrics", "/v1/jobs/x/images/0.png", "/nothing", "/page/../v1/jobs"):
        answer = client.get(path, headers={"Authorization": shown.encode("latin-1")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200


def test_the_token_opens(start):
    client = start(rules=Rules(token=TOKEN))
    assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/v1/jobs", auth=("anybody", TOKEN)).status_code == 200


def test_named_hosts_and_origins_are_let_in(start):
    origin = {"Origin": "https://friend.example"}
    client = start(rules=Rules(LOCAL | {"my.example"}, frozenset({"https://friend.example"})))
    assert client.get("/v1/jobs", headers={"Host": "My.Example:7860"}).status_code == 200
    answer = client.get("/v1/jobs", headers=origin)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://friend.example")
    answer = client.options("/v1/jobs", headers=origin | {"Access-Control-Request-Method": "POST"})
    assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, "authorization, content-type")
    answer = client.get("/v1/jobs", headers={"Origin": "http://localhost:7860"})
    assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (200, False)


def test_answers_forbid_other_pages_to_use_them(client):
    headers = client.get("/health").headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert headers["cross-origin-resource-policy"] == "same-origin"
