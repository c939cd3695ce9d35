"""Requests of people who mean harm, as the bytes that they send; PORT stands for the port of the server."""

import base64
import io
import json
import struct
import zlib

from PIL import Image

from keras_diffusion.serving import a1111_fields
from keras_diffusion.serving.calls import ARGUMENTS

JSON = "application/json"
JOBS = "/v1/jobs"
IMG2IMG, EDITS = "/sdapi/v1/img2img", "/v1/images/edits"
POSTS = (JOBS, "/v1/images/generations", *(f"/sdapi/v1/{name}" for name in ("txt2img", "options", "png-info")))
SECRET = "secret words"  # that no log may show


def request(method, path, headers=None, body=b""):
    given = {"Host": "localhost:PORT", "Connection": "close"}
    if body:
        given |= {"Content-Type": JSON, "Content-Length": len(body)}
    given |= headers or {}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(path, value, content_type=JSON):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return request("POST", path, {"Content-Type": content_type}, body)


def job(**fields):
    return post(JOBS, {"prompt": SECRET, **fields})


def form(*rows):
    """A request to edit: rows of (name, file name or None, content)."""
    body = b""
    for name, file, content in rows:
        file = "" if file is None else f'; filename="{file}"'
        body += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return post(EDITS, body + b"--x--\r\n", "multipart/form-data; boundary=x")


def image(format="PNG", size=(64, 64)):
    content = io.BytesIO()
    Image.new("RGB", size).save(content, format)
    return content.getvalue()


def in_base64(content):
    return base64.b64encode(content).decode()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks, content=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", content), chunk(b"IEND", b"")])


GOOD = job(num_steps=1)
BOMBS = {
    "50000 × 50000 pixels": png(50000, 50000, content=zlib.compress(bytes(1000))),
    "2^31 pixels wide": png(2**31 - 1, 1),
    "bomb of pixels": png(4096, 4096, content=zlib.compress(bytes(4096 * (1 + 3 * 4096)), 9)),
    "bomb of text": png(64, 64, *[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(900_000), 9))] * 50),
    "cut short": image()[:70],
    **{kind: image(kind) for kind in ("GIF", "TIFF", "ICO", "BMP", "PDF")},
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n",
    "pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "nothing": b"",
}
HOSTS = [
    *("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "localhost:PORT@evil.example", "2130706433"),
    *("evil.example:PORT", "[::ffff:127.0.0.1]:PORT", "127.1", "0.0.0.0:PORT", "localhost.", "", None, "*"),
    *("localhost:99999999", "localhost:PORT,evil.example", "localhost:PORT/x", "xn--lcalhost-n4a:PORT"),
]
ORIGINS = [
    *("https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example:PORT", "file://", ""),
    *("http://localhost:PORT.evil.example", "chrome-extension://x", "http://127.0.0.1:PORT", "*", "https://localhost"),
]
NO_JSON = [
    *("[" * 100_000, '{"a":' * 100_000, "[" * 17 + "]" * 17, '{"prompt": NaN}', '{"prompt": Infinity}', "null", "[]"),
    *('"prompt"', "1", "{", '{"prompt": "x"', "{'prompt': 'x'}", '{"num_steps": ' + "9" * 5000 + "}", "<xml/>"),
    *('{"prompt": 1e999}', b"\xff\xfe{", b"\x00" * 100, '{"prompt": "\\ud800", "num_steps": "\\udfff"}'),
]
NO_VALUES = [{}, [[[[]]]], {"prompt": {}}, 1e308, -1e308, 10**300, "\ud800"]
TEXTS = ("prompt", "negative_prompt")
PATHS = [
    *("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd", "/page/%00"),
    *("/page/..\\app.py", "/page/....//app.py", "/v1/jobs/..", "/v1/jobs/%2e%2e%2f%2e%2e/images/0.png"),
    *("/v1/jobs/%00", "/v1/jobs/'--", "/v1/jobs/x/images/-1.png", "/v1/jobs/x/images/99999999999999999999.png"),
    *("/v1/jobs/" + "x" * 5000, "/v1/jobs/x/images/../../../jobs.sqlite", "/v1/jobs?limit=-1", "/v1/jobs?limit=1e9"),
    *("/v1/jobs?limit=%00", "/v1/jobs?limit=" + "9" * 400, "/v1/jobs?limit=%d9%a3", "/file=/etc/passwd", "//", "/.."),
]
ADDRESSES = [
    *("file:///etc/passwd", "http://127.0.0.1:22/", "/etc/passwd", "data:,x", "data:image/png;base64,", r"\\host\x"),
]
OPENAI = ("n", "size", "quality", "model", "stream", "partial_images", "output_compression", "response_format", "seed")
METHODS = ("PUT", "PATCH", "TRACE", "CONNECT", "OPTIONS", "BREW")
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Type": JSON}
RAW = {
    "too long by its header": request("POST", JOBS, {"Content-Length": 10**10, "Content-Type": JSON}),
    "too long by far": request("POST", JOBS, {"Content-Length": "9" * 18, "Content-Type": JSON}),
    "a length of 30 digits": request("POST", JOBS, {"Content-Length": "9" * 30, "Content-Type": JSON}),
    "negative length": request("POST", JOBS, {"Content-Length": -1}),
    "length in words": request("POST", JOBS, {"Content-Length": "ten"}),
    "too long in fact": post(JOBS, b" " * (2**20 + 1)),
    "too long in chunks": request("POST", JOBS, CHUNKED) + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 17 + b"0\r\n\r\n",
    "length and chunks": request("POST", JOBS, CHUNKED | {"Content-Length": 5}) + b"0\r\n\r\n",
    "unknown encoding": request("POST", JOBS, {"Transfer-Encoding": "gzip"}),
    "two hosts": request("GET", JOBS, {"X": "1\r\nHost: evil.example"}),
    "header of 100 kB": request("GET", JOBS, {"X": "x" * 100_000}),
    "10000 headers": request("GET", JOBS, {f"X{i}": "x" for i in range(10_000)}),
    "line of 100 kB": request("GET", "/v1/" + "x" * 100_000),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "header without a colon": b"GET /v1/jobs HTTP/1.1\r\nHost localhost\r\n\r\n",
    "NUL in a header": request("GET", JOBS, {"X": "a\0b"}),
    "body that never ends": request("POST", JOBS, {"Content-Length": 1000, "Content-Type": JSON}) + b"{",
}


def cases():
    """Yields (name, bytes)."""
    yield from RAW.items()
    for host in HOSTS:
        for method, path in (("GET", JOBS), ("POST", JOBS), ("GET", "/health")):
            yield f"{method} {path} of host {host}", request(method, path, {"Host": host}, b"{}" * (method == "POST"))
    for origin in ORIGINS:
        for method, path in (("GET", JOBS), ("POST", JOBS), ("DELETE", "/v1/jobs/x"), ("OPTIONS", JOBS)):
            body = b"{}" * (method == "POST")
            yield f"{method} {path} from {origin}", request(method, path, {"Origin": origin}, body)
    for site in ("cross-site", "same-site", "x"):
        yield f"from another site: {site}", request("GET", JOBS, {"Sec-Fetch-Site": site})
    for path in POSTS:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "image/png", "", None):
            yield f"{path} as {kind}", post(path, {"prompt": SECRET}, kind)
        for text in NO_JSON:
            yield f"{path}: {text[:20]!r}", post(path, text if isinstance(text, bytes) else text.encode())
    for name in ARGUMENTS:
        for value in NO_VALUES:
            if name not in TEXTS or not isinstance(value, str):
                yield f"{name}={value!r:.20}", job(**{name: value})
    for name, bomb in BOMBS.items():
        yield f"image: {name}", job(task="image_to_image", image=in_base64(bomb))
        yield f"mask: {name}", job(task="inpaint", image=in_base64(image()), mask=in_base64(bomb))
        yield f"init image: {name}", post(IMG2IMG, {"init_images": [in_base64(bomb)]})
        yield f"edit: {name}", form(("image", "x.png", bomb), ("prompt", None, b"x"))
        yield f"settings: {name}", post("/v1/read-settings", bomb or b"0", "image/png")
    for name in (*a1111_fields.ARGUMENTS, *a1111_fields.WITHOUT_EFFECT):
        yield f"A1111's {name}", post("/sdapi/v1/txt2img", {name: [{"a": [1]}]})
    for name in OPENAI:
        yield f"OpenAI's {name}", post("/v1/images/generations", {"prompt": "x", name: {"a": [1]}})
        yield f"{name} of an edit", form(("image", "x.png", image()), ("prompt", None, b"x"), (name, "y.png", b"y"))
    yield "a form of many fields", form(("image", "x.png", image()), *[(f"f{i}", None, b"x") for i in range(2000)])
    yield "a form of many files", form(*[("image[]", "x.png", image())] * 50)
    yield "a form without end", post(EDITS, b"--x\r\nContent-Disp", "multipart/form-data; boundary=x")
    yield "a form without a boundary", post(EDITS, b"--x\r\n", "multipart/form-data")
    yield "a form of paths", form(("image", "../../etc/passwd", b"/etc/passwd"), ("prompt", None, b"x"))
    for address in ADDRESSES:
        yield f"image at {address}", job(task="image_to_image", image=address)
    for path in PATHS:
        yield f"path {path[:40]}", request("GET", path)
    for method in METHODS:
        for path in (JOBS, "/health", "/v1/options"):
            yield f"{method} {path}", request(method, path)
