"""Decides who may use the server, before anything else looks at a request. docs/threat-model.md has the reasons."""

import asyncio
import base64
import binascii
import hmac
import logging
import re
import traceback
from ipaddress import ip_address
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders

from keras_diffusion.serving.problems import Problem

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
OPEN = re.compile(r"/|/health|/page(/.*)?")  # paths that need no token: they hold nothing of anybody
CONTENT_TYPES = {  # of a body, by path; all others take JSON
    "/v1/read-settings": ("image/png", "image/jpeg", "image/webp"),
    "/v1/images/edits": ("multipart/form-data",),
}
JSON = ("application/json",)
HEAD = 2**15  # bytes of all headers
BODIES = 3  # how many bodies of the largest size are held at a time
PAGE_MAY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_MAY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

logger = logging.getLogger(__name__)


class Rules(NamedTuple):
    """Says who may use the server.

    Args:
        hosts: The names under which it may be asked, lower case, without a port: `LOCAL` and those that were named.
        origins: The origins of other web pages that may use it, such as "https://example.org".
        token: What every request must show, or None.
    """

    hosts: frozenset = LOCAL
    origins: frozenset = frozenset()
    token: str | None = None


class Gate:
    """The ASGI middleware that applies the rules.

    Args:
        app: The application behind it.
        rules: The `Rules`.
        limits: The `Limits`.
    """

    def __init__(self, app, rules, limits):
        self.app, self.rules, self.limits, self._held = app, rules, limits, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":  # there are no websockets
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        named = origin in self.rules.origins

        async def send_with_headers(message):
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
                answer["Cross-Origin-Resource-Policy"] = "cross-origin" if named else "same-origin"
                if named:
                    answer["Access-Control-Allow-Origin"] = origin
                    answer.add_vary_header("Origin")
            await send(message)

        body, started = bytearray(), False
        try:
            self._check(scope, headers, origin)
            if named and scope["method"] == "OPTIONS":
                await _allow(scope, receive, send_with_headers)
                return
            self._check_token(scope, headers)
            await self._read(scope, headers, receive, body)
            await self.app(scope, _replay(body, receive), send_with_headers)
        except Problem as problem:
            await problem.response()(scope, receive, send_with_headers)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s in %s, line %d", type(error).__name__, place.filename, place.lineno)
            if not started:
                problem = Problem(f"The server has a defect ({type(error).__name__}); its log says where.", 500)
                await problem.response()(scope, receive, send_with_headers)
        finally:
            self._held -= len(body)

    def _check(self, scope, headers, origin):
        """Refuses requests under other names, and those of other web pages."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD:
            raise Problem(f"The headers may have {HEAD} bytes together.", 431)
        match = HOST.fullmatch(headers.get("host", ""))
        if not match or match["name"].lower() not in self.rules.hosts or len(headers.getlist("host")) != 1:
            raise Problem(
                "The server is not known by this name (header Host); name it with --allow-host.", 421, code="wrong_host"
            )
        own = {f"{scheme}://{headers['host']}".lower() for scheme in ("http", "https")}
        if origin is not None and origin.lower() not in own and origin not in self.rules.origins:
            raise Problem(
                "Other web pages may not use the server (header Origin); name theirs with --allow-origin.",
                403,
                code="wrong_origin",
            )
        site = headers.get("sec-fetch-site", "none")
        if origin is None and site not in ("same-origin", "none") and scope["path"] != "/":
            raise Problem("Other web pages may not use the server.", 403, code="wrong_origin")

    def _check_token(self, scope, headers):
        if self.rules.token is None or OPEN.fullmatch(scope["path"]):
            return
        if not hmac.compare_digest(_shown_token(headers.get("authorization", "")), self.rules.token.encode()):
            raise Problem(
                "The server needs its token: Authorization: Bearer TOKEN, or Basic with the token as the password.",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope, headers, receive, body):
        """Reads a body, into a bytearray, within the limits of size and time."""
        largest = self.limits.max_body
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:18]) > largest:
            raise Problem(f"The body may have {largest} bytes.", 413, code="too_large", headers={"Connection": "close"})
        try:
            async with asyncio.timeout(self.limits.seconds_to_send):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem("The client has gone.")
                    body += (part := message.get("body", b""))
                    self._held += len(part)
                    if len(body) > largest:
                        raise Problem(f"The body may have {largest} bytes.", 413, code="too_large")
                    if self._held > BODIES * largest:
                        raise Problem("The server is reading too much at once. Try again later.", 429, code="busy")
                    if not message.get("more_body"):
                        break
        except TimeoutError as error:
            message = f"A request must be sent within {self.limits.seconds_to_send:g} seconds."
            raise Problem(message, 408, headers={"Connection": "close"}) from error
        if body:
            allowed = CONTENT_TYPES.get(scope["path"], JSON)
            given = headers.get("content-type", "").partition(";")[0].strip().lower()
            if given not in allowed:
                listed = ", ".join(allowed)
                raise Problem(f"The Content-Type must be {listed}. Received: {given!r:.99}", 415, code="content_type")


def host_name(address):
    """Returns how a Host header writes an address or a name: IPv6 in brackets."""
    try:
        return f"[{address}]" if ip_address(address).version == 6 else address
    except ValueError:
        return address.lower()


def _shown_token(authorization):
    """The token of an Authorization header, bytes; empty if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            pass
    return b""


def _replay(body, receive):
    """Gives the application a body that was read, and after it what the server says."""
    first = True

    async def replay():
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": bytes(body), "more_body": False}
        return await receive()

    return replay


async def _allow(scope, receive, send):
    """Answers the question of a browser whether a page of a named origin may ask."""
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
