"""The command `serve`: what it hands to the server, and who may be served."""

import re
import socket

import pytest

from keras_diffusion.cli import main as cli


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Gives a function that serves with options, in a folder of its own, and returns what the server was handed."""
    from keras_diffusion.serving import server

    handed = {}

    def remember(listener, store, *others):
        handed.update(zip(("models", "adapters", "limits", "rules", "model", "secret"), others, strict=True))
        listener.close()
        store.close()

    def run(*options):
        assert cli.main(["serve", "--port", "0", "--jobs", str(tmp_path / "jobs"), *options]) == 0
        return handed

    monkeypatch.setattr(server, "serve", remember)
    monkeypatch.delenv("KERAS_DIFFUSION_TOKEN", raising=False)
    return run


def test_serve_hands_its_options_on(serve, tmp_path, capsys):
    (tmp_path / "token").write_text("a token of 24 characters\n")
    files = ["--token-file", str(tmp_path / "token"), "--loras", str(tmp_path), "--tiny-vae", str(tmp_path / "token")]
    handed = serve(*files, "--allow-host", "My.Example", "--allow-origin", "https://a.example", "--max-steps", "7")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", capsys.readouterr().out)
    rules, limits = handed["rules"], handed["limits"]
    assert {"my.example", "localhost", "127.0.0.1", "[::1]"} == rules.hosts
    assert (rules.token, rules.origins) == ("a token of 24 characters", {"https://a.example"})
    assert tmp_path / "token" in handed["secret"]
    assert (limits.max_steps, handed["model"], handed["models"].names) == (7, "emoji", ["emoji"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--host", "::"], "needs a token"),
        (["--token-file", "nothing"], "at least 16"),
    ],
)
def test_a_server_for_others_needs_a_token(serve, options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").write_text("short")
    with pytest.raises(SystemExit):
        serve(*options)
    assert message in capsys.readouterr().err
    monkeypatch.setattr("keras_diffusion.serving.server.bind", lambda *_: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setenv("KERAS_DIFFUSION_TOKEN", "a token of 24 characters")
    assert serve("--host", "0.0.0.0")["rules"].token == "a token of 24 characters"
