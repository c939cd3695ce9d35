"""Fetching built-in models: against a server on this machine that misbehaves in every way."""

import errno
import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.download import fetch as download
from keras_diffusion.checkpoints.download import https, sources
from keras_diffusion.errors import DownloadError, IntegrityError, NoSpaceError, OfflineError
from keras_diffusion.system import paths

CONTENT = bytes(range(256)) * 40
PATH = "/owner/name/resolve/1234/model.safetensors"
URL = f"https://huggingface.co{PATH}"
PAGE = "https://huggingface.co/owner/name"
TOKEN = "hf_secret"


class Server(ThreadingHTTPServer):
    """Answers with the functions in `answers`, one for each request and the last one for all that follow."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = [whole], []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answers = self.server.answers
        self.server.requests.append((self.path, dict(self.headers)))
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_):
        pass


def answer(handler, body=b"", status=200, **headers):
    handler.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler):
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if not wanted:
        return answer(handler, CONTENT)
    start = int(wanted[1])
    content_range = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    return answer(handler, CONTENT[start:], 206, Content_Range=content_range)


def cut(handler):
    """Half of what was asked for, then a closed connection."""
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    start = int(wanted[1]) if wanted else 0
    body = CONTENT[start : (start + len(CONTENT)) // 2]
    content_range = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if wanted else {}
    answer(handler, body, 206 if wanted else 200, Content_Length=len(CONTENT) - start, **content_range)
    handler.close_connection = True


def reply(*arguments, **options):
    return lambda handler: answer(handler, *arguments, **options)


class AsItIs(urllib.request.HTTPErrorProcessor):
    """Leaves redirects and errors to the caller, as `https.request` does."""

    def http_response(self, request, response):
        return response


@pytest.fixture
def server(serving):
    with serving(Server()) as server:
        yield server


@pytest.fixture
def request_here(server):
    """Stands in for `https.request`: every host is the server here."""

    def request(url, headers):
        here = urlsplit(url)._replace(scheme="http", netloc=f"127.0.0.1:{server.server_port}").geturl()
        hosts.append(urlsplit(url).netloc)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), AsItIs)
        return opener.open(urllib.request.Request(here, headers=headers), timeout=10)

    hosts = server.hosts = []
    return request


@pytest.fixture
def waits():
    return []


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DIFFUSION_HOME", str(tmp_path / "cache"))
    for variable in (*download.OFFLINE, download.ENDPOINT, "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def manifest(monkeypatch):
    """A built-in model of one file, "small"."""
    entry = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "bytes": len(CONTENT)}
    model = {"repository": "owner/name", "revision": "1234", "licence": "A Licence"}
    model["files"] = {"model.safetensors": entry}
    monkeypatch.setitem(sources.MANIFEST, "small", model)
    return model


@pytest.fixture
def fetch(cache, manifest, request_here, waits):
    read = partial(download.read_file, request=request_here, sleep=waits.append)
    return partial(download.fetch, "small", read=read)


def everything(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_the_file_is_there_complete_and_kept(fetch, cache, server):
    path = fetch()
    assert path == cache / "small" / "1234" / "model.safetensors"
    assert path.read_bytes() == CONTENT
    assert everything(cache) == ["model.safetensors"]
    assert fetch() == path
    assert fetch(offline=True) == path
    assert [path for path, _ in server.requests] == [PATH]


def test_several_files_make_a_folder(fetch, cache, manifest):
    manifest["files"]["second.safetensors"] = manifest["files"]["model.safetensors"]
    assert fetch() == cache / "small" / "1234"
    assert everything(cache) == ["model.safetensors", "second.safetensors"]


def test_a_file_of_another_size_is_fetched_again(fetch):
    path = fetch()
    path.write_bytes(b"half")
    assert fetch().read_bytes() == CONTENT


REFUSED = {
    "gated, asked without a token": ([reply(status=401)], DownloadError, "accept its licence on .*set HF_TOKEN"),
    "private": ([reply(status=403)], DownloadError, "accept its licence on .*set HF_TOKEN"),
    "gone": ([reply(status=404)], DownloadError, "not there"),
    "gone for good": ([reply(status=410)], DownloadError, "not there any more"),
    "busy for ever": ([reply(status=429)], DownloadError, r"10 attempts"),
    "busy for an hour": ([reply(status=429, Retry_After=3600)], DownloadError, "3600 seconds"),
    "broken server": ([reply(status=500)], DownloadError, "answers 500.* 10 attempts"),
    "unknown status": ([reply(status=418)], DownloadError, "answers 418"),
    "nothing": ([reply(status=204, Content_Length=None)], DownloadError, "answers 204"),
    "short by its header": ([reply(CONTENT[:-1])], IntegrityError, "should have 10,240 bytes"),
    "long by its header": ([reply(CONTENT + b"x")], IntegrityError, "should have 10,240 bytes"),
    "long without a header": ([reply(CONTENT + b"x", Content_Length=None)], IntegrityError, "more than the 10,240"),
    "negative length": ([reply(CONTENT, Content_Length=-1)], IntegrityError, "should have 10,240 bytes"),
    "length in words": ([reply(CONTENT, Content_Length="many")], IntegrityError, "should have 10,240 bytes"),
    "one bit wrong": ([reply(b"\1" + CONTENT[1:])], IntegrityError, "sha256"),
    "a web page": ([reply(b"x" * len(CONTENT), Content_Type="text/html; charset=utf-8")], IntegrityError, "web page"),
    "a web page in disguise": ([reply(b"\n<!DOCTYPE html>".ljust(len(CONTENT)))], IntegrityError, "web page"),
    "an LFS pointer": ([reply(b"version https://git-lfs".ljust(len(CONTENT)))], IntegrityError, "Git LFS"),
    "another place": ([cut, reply(CONTENT[1:], 206, Content_Range="bytes 1-10239/10240")], IntegrityError, "byte 1,"),
    "no place": ([cut, reply(CONTENT[5120:], 206)], IntegrityError, "goes on from byte -1"),
    "always cut at once": ([reply(b"", Content_Length=len(CONTENT))], DownloadError, "10 attempts"),
    "redirects for ever": ([reply(status=302, Location=URL)], DownloadError, "more than 5 times"),
    "redirect to nowhere": ([reply(status=302)], DownloadError, "more than 5 times"),
}
PLACES = [
    *("http://huggingface.co/x", "file:///etc/passwd", "ftp://example.com/x", "//user:pw@example.com/x", "https:///x"),
    *("https://127.0.0.1/x", "https://localhost/x", "https://[::1]/x", "https://10.1.2.3/x", "https://192.168.0.1:8/x"),
    *("https://169.254.169.254/latest", "https://[fe80::1%25eth0]/x", "https://[::ffff:10.0.0.1]/x", "https://0.0.0.0"),
    *("https://printer.local/x", "https://metadata.google.internal/x", "https://[::1", "data:text/plain,x"),
    "https://100.64.0.1/shared",
]
REFUSED |= {
    f"redirect to {place}": ([reply(status=307, Location=place)], DownloadError, "redirects|refused")
    for place in PLACES
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_leaves_nothing(fetch, cache, server, monkeypatch, case):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.answers, error, message = REFUSED[case][0][:], *REFUSED[case][1:]
    with pytest.raises(error, match=message) as caught:
        fetch()
    assert type(caught.value) is error
    assert TOKEN not in str(caught.value)
    assert everything(cache) == []
    assert set(server.hosts) == {"huggingface.co"}
    server.answers = [whole]
    assert fetch().read_bytes() == CONTENT


def test_goes_on_where_the_connection_broke(fetch, server, waits):
    server.answers = [cut, cut, whole]
    assert fetch().read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=5120-", "bytes=7680-"]
    assert waits == []


def test_the_next_run_goes_on_where_the_last_one_ended(fetch, cache, server):
    server.answers = [cut, reply(status=403)]
    with pytest.raises(DownloadError):
        fetch()
    assert everything(cache) == [".model.safetensors.unfinished"]
    server.answers = [whole]
    assert fetch().read_bytes() == CONTENT
    assert server.requests[-1][1]["Range"] == "bytes=5120-"
    assert everything(cache) == ["model.safetensors"]


def test_gives_up_within_ten_seconds_where_nothing_answers(cache, manifest, waits, caplog):
    def request(url, headers):
        raise urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))

    options = {"request": request, "sleep": waits.append, "clock": lambda: sum(waits)}
    with pytest.raises(DownloadError, match=r"no server answers \(.*Name or service not known\).*HTTPS_PROXY"):
        download.fetch("small", read=partial(download.read_file, **options))
    assert waits == [1, 2, 4]
    assert [f"attempt {number} of 10 follows in" in caplog.text for number in (2, 3, 4, 5)] == [True, True, True, False]


def test_a_mirror_is_asked_in_place_of_huggingface(fetch, server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.com/")
    fetch()
    assert server.hosts == ["mirror.example.com"]
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example.com")
    with pytest.raises(ValueError, match="HF_ENDPOINT must begin with https"):
        download.server()


def test_begins_again_where_the_server_cannot_go_on(fetch, server):
    server.answers = [cut, reply(CONTENT)]
    assert fetch().read_bytes() == CONTENT


def test_waits_as_long_as_the_server_says(fetch, server, waits):
    server.answers = [reply(status=429, Retry_After=7), reply(status=503), reply(status=500, Retry_After="soon"), whole]
    assert fetch().read_bytes() == CONTENT
    assert waits == [7, 2, 4]


def test_the_token_stays_with_its_host(fetch, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    elsewhere = "https://cdn.example.com/file?signature=x"
    server.answers = [reply(status=302, Location="/moved"), reply(status=302, Location=elsewhere), whole]
    assert fetch().read_bytes() == CONTENT
    assert server.hosts == ["huggingface.co", "huggingface.co", "cdn.example.com"]
    sent = [headers.get("Authorization") for _, headers in server.requests]
    assert sent == [f"Bearer {TOKEN}", f"Bearer {TOKEN}", None]


@pytest.mark.parametrize("token", ["hf_secret\nHost: x", "hf_se cret", "hf_sécret"])
def test_a_malformed_token_is_not_shown(fetch, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match="not shown") as caught:
        fetch()
    assert "cret" not in str(caught.value)


def test_a_signed_url_is_not_shown(fetch, server):
    server.answers = [reply(status=302, Location="http://cdn.example.com/file?signature=secret")]
    with pytest.raises(DownloadError) as caught:
        fetch()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://huggingface.co", "file:///etc/passwd", "ftp://huggingface.co/x"])
def test_knows_no_scheme_but_https(url):
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        https.request(url, {})


def test_says_nothing_to_a_private_address():
    """Whatever a name resolves to, the connection itself is looked at, before anything is sent over it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(DownloadError, match=r"private address.*127\.0\.0\.1"):
            https.Connection("localhost", port).connect()
        with listener.accept()[0] as connection:
            assert connection.recv(1) == b""
    proxied = https.Connection("localhost", port)
    proxied.set_tunnel("example.com")
    assert proxied._create_connection is https.connect


PRIVATE = [
    *("127.1", "2130706433", "0x7f000001", "0x7f.1", "127.0.0.0x1", "0177.0.0.1", "1.2.3.4.5", "."),
    *("localhost.", "LOCALHOST", "x.localhost", "printer.local.", "metadata.internal"),
    *("10.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "0.0.0.0", "100.64.0.1"),
    *("[::1]", "[::]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[fd00::1]"),
    *("[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]"),
]


@pytest.mark.parametrize("host", PRIVATE)
def test_refuses_hosts_that_are_or_hide_private_addresses(host):
    with pytest.raises(DownloadError):
        https.check_url(f"https://{host}/file")


@pytest.mark.parametrize(
    "host", ["huggingface.co", "1.1.1.1", "[2606:4700::1111]", "cas-bridge.xethub.hf.co", "3.example.com"]
)
def test_takes_hosts_that_everybody_reaches(host):
    https.check_url(f"https://{host}/file")


@pytest.mark.parametrize("location", ["https://a b/", "https://a.co/x y", "https://a.co:99999/", "https://a.co:0/"])
def test_what_is_no_url_is_not_tried_again(fetch, server, location):
    server.answers = [reply(status=302, Location=location)]
    with pytest.raises(DownloadError, match="what is no URL"):
        fetch()
    assert len(server.requests) == 1


@pytest.mark.parametrize(("told", "seconds"), [("0", 1), ("1", 1), ("7", 7), (None, 4), ("soon", 4), ("-1", 4)])
def test_waits_at_least_a_second(told, seconds):
    assert https.waiting_time(told, 2) == seconds


@pytest.mark.parametrize(("size", "chunks"), [(1, 151), (2000, 400)])
def test_a_drip_is_given_up(size, chunks):
    """A byte in 0.4 seconds is too little, 2,000 are enough; the clock is not the real one."""
    seconds = count(step=0.4)
    response = SimpleNamespace(read1=lambda limit: bytes(size))
    came = list(islice(https.steadily(response, clock=lambda: next(seconds)), 400))
    assert len(came) == chunks


def test_no_space_is_noticed_before(fetch, monkeypatch, server, cache):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(NoSpaceError, match=r"room for 1,000\. .*KERAS_DIFFUSION_HOME"):
        fetch()
    assert not server.requests
    assert everything(cache) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_noticed_while_writing(fetch, monkeypatch, cache, number):
    def fail(file):
        raise OSError(number, "full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(NoSpaceError, match="no room left"):
        fetch()
    assert everything(cache) == []


def test_a_cache_that_cannot_be_written(fetch, cache):
    cache.write_bytes(b"a file in its place")
    with pytest.raises(DownloadError, match=r"cache cannot be written.*KERAS_DIFFUSION_HOME"):
        fetch()


def test_a_read_only_cache(fetch, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(DownloadError, match=r"Read-only file system.*KERAS_DIFFUSION_HOME"):
        fetch()


def test_another_process_may_have_the_file_open(fetch, monkeypatch, manifest):
    """Windows does not replace a file that is open."""

    def refuse(source, target):
        target.write_bytes(CONTENT)
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr("os.replace", refuse)
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("variable", download.OFFLINE)
def test_offline(fetch, server, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match=r"from_preset\('small'\).*A Licence.*model\.safetensors from") as caught:
        fetch()
    assert PAGE in str(caught.value)
    assert not server.requests
    monkeypatch.setenv(variable, "0")
    fetch()
    monkeypatch.setenv(variable, "1")
    assert fetch().read_bytes() == CONTENT


def test_only_who_asks_downloads(cache):
    with pytest.raises(OfflineError, match=r"not at hand.*from_preset\('sd15'\)"):
        presets.find("sd15")


def test_size_and_licence_are_logged_first_and_once(fetch, server, caplog):
    download.notice.cache_clear()
    server.answers = [reply(status=404)]
    with caplog.at_level(logging.INFO), pytest.raises(DownloadError):
        fetch()
    assert [f"under A Licence, see {PAGE}" in caplog.text, "0.00 GB of 'small'" in caplog.text] == [True, True]
    caplog.clear()
    server.answers = [whole]
    fetch()
    assert "Licence" not in caplog.text


def test_what_killed_processes_left_goes_after_a_day(fetch, cache):
    folder = cache / "small" / "1234"
    folder.mkdir(parents=True)
    parts = [folder / f".model.safetensors.{digit * 16}.part" for digit in "01"]
    for part in parts:
        part.touch()
    os.utime(parts[0], (time.time() - 2 * paths.ABANDONED,) * 2)
    fetch()
    assert everything(cache) == [parts[1].name, "model.safetensors"]


CHILD = """
import json, sys, urllib.request
from functools import partial
from keras_diffusion.checkpoints.download import fetch as download
from keras_diffusion.checkpoints.download import sources
model, port = json.loads(sys.argv[1]), sys.argv[2]
sources.MANIFEST["small"] = model
def request(url, headers):
    url = url.replace("https://huggingface.co", f"http://127.0.0.1:{port}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, headers=headers))
print(download.fetch("small", read=partial(download.read_file, request=request)))
"""


def start(manifest, server):
    command = [sys.executable, "-c", CHILD, json.dumps(manifest), str(server.server_port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_half(cache, manifest, server):
    half, killed = threading.Event(), threading.Event()

    def stall(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[: len(CONTENT) // 2])
        handler.wfile.flush()
        half.set()
        killed.wait(60)

    server.answers = [stall]
    process = start(manifest, server)
    assert half.wait(60)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()
    killed.set()
    assert not (cache / "small" / "1234" / "model.safetensors").exists()
    server.answers = [whole]
    output, errors = start(manifest, server).communicate()
    assert Path(output.strip()).read_bytes() == CONTENT, errors


def test_eight_processes_at_once(cache, manifest, server):
    """They meet at the server, which answers when all have asked."""
    barrier = threading.Barrier(8, timeout=120)

    def together(handler):
        barrier.wait()
        whole(handler)

    server.answers = [together]
    processes = [start(manifest, server) for _ in range(8)]
    for process in processes:
        output, errors = process.communicate()
        assert Path(output.strip()).read_bytes() == CONTENT, errors
    assert everything(cache) == ["model.safetensors"]


def test_a_bar_on_a_terminal_only(fetch, monkeypatch, capsys):
    path = fetch()
    assert capsys.readouterr() == ("", "")
    path.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch()
    output, errors = capsys.readouterr()
    assert not output
    assert "100% of 0.00 GB" in errors
    assert errors.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"KERAS_DIFFUSION_HOME": "~/mine", "XDG_CACHE_HOME": "/xdg"}, "~/mine"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/keras-diffusion"),
        ("linux", {}, "~/.cache/keras-diffusion"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "~/Library/Caches/keras-diffusion"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/keras-diffusion"),
    ],
)
def test_the_cache_folder(monkeypatch, platform, environment, expected):
    for variable in ("KERAS_DIFFUSION_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert download.home() == Path(expected).expanduser()


@pytest.mark.parametrize("name", ["emoji", "unknown", "https://huggingface.co/a/b", "", None, 7])
def test_other_names_are_not_fetched(name):
    with pytest.raises(ValueError, match="hf://owner/repository"):
        download.fetch(name)


def test_an_unverified_built_in_is_not_fetched_by_name(monkeypatch, manifest):
    manifest["files"] = {}
    with pytest.raises(OfflineError, match=r"from_preset\('hf://owner/name@1234'\)"):
        download.fetch("small", offline=False)


def test_the_manifest():
    for name, entry in sources.MANIFEST.items():
        assert re.fullmatch(r"\w+", name, re.ASCII)
        if not entry:
            continue
        model = sources.source(name)
        assert model.licence.startswith("CreativeML Open RAIL")
        assert sources.source(f"hf://{model.repository}@{model.revision}").repository == model.repository
        for file, wanted in model.files.items():
            assert re.fullmatch(r"[A-Za-z0-9][\w.-]*\.(safetensors|ckpt|h5)", file, re.ASCII)
            assert re.fullmatch(r"[0-9a-f]{64}", wanted["sha256"])
            assert wanted["bytes"] > 1e8
