"""Reads one file of known size over https, whatever the network does."""

import http.client
import ipaddress
import logging
import re
import socket
import time
import urllib.request
from contextlib import closing
from urllib.parse import urljoin, urlsplit

from keras_diffusion.errors import DownloadError, IntegrityError

ATTEMPTS = 10  # connections for one file
REDIRECTS = 5  # for one connection
SHORTEST_WAIT, LONGEST_WAIT = 1, 60  # seconds
LEAST, WHILE = 1 << 16, 60  # bytes that come in so many seconds, or the connection counts as broken
PATIENCE = 10  # seconds for a connection, and for all attempts until a server answers for the first time
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20  # bytes
NUMBER = re.compile(r"[0-9.]*|.*\.(0x[0-9a-f]*|[0-9]+)|0x[0-9a-f]*", re.IGNORECASE)
WITH_IPV4 = [ipaddress.ip_network(network) for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")]
MOVED = {301, 302, 303, 307, 308}
TRY_AGAIN = {429, 500, 502, 503, 504}
REFUSALS = {  # status → what it means and what to do
    401: "the repository is gated, private or not there: check its name, accept its licence on {page} and set HF_TOKEN",
    403: "the repository is gated or private: accept its licence on {page} and set HF_TOKEN to one that may read it",
    404: "it is not there; it was moved or deleted, see {page}",
    410: "it is not there any more, see {page}",
    429: "the server asks to come back later; wait, or set HF_TOKEN",
}

log = logging.getLogger(__name__)


class Connection(http.client.HTTPSConnection):
    """An https connection that says nothing to private addresses."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._create_connection = self._checked_connection  # which http.client calls before it begins TLS

    def set_tunnel(self, *arguments, **options):
        # The proxy may well be at a private address; it looks the host up itself.
        self._create_connection = connect
        super().set_tunnel(*arguments, **options)

    def _checked_connection(self, *arguments, **options):
        connection = connect(*arguments, **options)
        try:
            check_address(connection.getpeername()[0])
        except BaseException:
            connection.close()
            raise
        return connection


def connect(address, timeout, *arguments):
    """Opens a connection within PATIENCE, which then waits TIMEOUT for each answer."""
    connection = socket.create_connection(address, PATIENCE, *arguments)
    connection.settimeout(TIMEOUT)
    return connection


class Handler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(Connection, request)


def request(url, headers):
    """Asks once and follows nothing; the opener knows no scheme but https.

    Args:
        url: An https URL.
        headers: A dict.

    Returns:
        A response with `status`, `headers`, `read` and `close`, whatever the status.

    Raises:
        OSError: If there is no connection.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), Handler(), urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def read(
    url,
    file,
    size,
    page,
    token="",
    progress=lambda received: None,
    request=request,
    sleep=time.sleep,
    clock=time.monotonic,
):
    """Reads a URL into a file, going on where the file or a broken connection ends.

    Args:
        url: An https URL.
        file: A binary file, open for writing at its end; what it holds is the beginning of the content.
        size: The size it must have, in bytes.
        page: Where people read about the model and accept its licence, for messages.
        token: A token for the host of `url`; no other host receives it.
        progress: Called with the number of bytes received.
        request: What asks, see `request`.
        sleep: What waits, see `time.sleep`.
        clock: What tells the seconds, see `time.monotonic`.

    Raises:
        DownloadError: If no server answers within PATIENCE, or it refuses, redirects to where it must not, or breaks
            off too often.
        IntegrityError: If it sends something else.
        OSError: If the file cannot be written.
    """
    for offset, chunk in chunks(url, file.tell(), size, page, token, request, sleep, clock):
        if offset != file.tell():  # the server began again
            file.seek(offset)
            file.truncate()
        file.write(chunk)
        progress(offset + len(chunk))


def chunks(url, received, size, page, token, request, sleep, clock):
    """Yields (offset, bytes) until there are `size` of them, over as many connections as that takes."""
    begun, answered, problem = clock(), False, ""
    for attempt in range(ATTEMPTS):
        before = received
        try:
            with closing(follow(url, received, token, request)) as response:
                answered = True
                if response.status in TRY_AGAIN:
                    problem = REFUSALS.get(response.status, f"the server answers {response.status}")
                    wait = waiting_time(response.headers.get("Retry-After"), attempt)
                    if wait > LONGEST_WAIT:
                        raise DownloadError(f"{url}: {problem} ({wait} seconds).")
                    announce(url, problem, attempt, wait)
                    sleep(wait)
                    continue
                received = first_byte(url, response, received, size, page)
                for chunk in steadily(response):
                    if received + len(chunk) > size:
                        raise IntegrityError(f"{url} sends more than the {size:,} bytes it should have.")
                    if not received:
                        check_start(url, chunk)
                    yield received, chunk
                    received += len(chunk)
            problem = "the connection broke"
        except DownloadError:
            raise
        except http.client.InvalidURL:
            raise DownloadError(f"The server redirects to what is no URL. Received: {public(url)}") from None
        except (OSError, http.client.HTTPException) as error:
            problem = f"the connection failed ({reason(error)})"
        if received == size:
            return
        wait = pause(attempt) if received <= before else 0
        if not answered and clock() - begun + wait >= PATIENCE:
            raise DownloadError(
                f"{url}: no server answers ({problem}). Check the network, or set HTTPS_PROXY to a proxy or "
                "HF_ENDPOINT to a mirror; KERAS_DIFFUSION_OFFLINE=1 forbids every download."
            )
        announce(url, problem, attempt, wait)
        if wait:
            sleep(wait)
    raise DownloadError(f"{url}: {problem}; {received:,} of {size:,} bytes came in {ATTEMPTS} attempts. Try again.")


def announce(url, problem, attempt, wait):
    """Logs that another attempt follows, if one does."""
    if attempt + 1 < ATTEMPTS:
        log.warning("%s: %s; attempt %d of %d follows in %d s", url, problem, attempt + 2, ATTEMPTS, wait)


def reason(error):
    """Describes an error of a connection in a few words."""
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__


def steadily(response, clock=time.monotonic):
    """Yields what comes, as it comes, and ends where it comes too slowly."""
    begun, count = clock(), 0
    while chunk := response.read1(CHUNK):
        yield chunk
        count += len(chunk)
        if clock() - begun > WHILE:
            if count < LEAST:
                return
            begun, count = clock(), 0


def follow(url, offset, token, request):
    """Asks for a URL from a byte on, and for where it redirects to, and returns the last response."""
    home, headers = urlsplit(url).netloc, {"Accept-Encoding": "identity", "User-Agent": "keras-diffusion"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    for _ in range(REDIRECTS + 1):
        check_url(url)
        secret = {"Authorization": f"Bearer {token}"} if token and urlsplit(url).netloc == home else {}
        response = request(url, headers | secret)
        if response.status not in MOVED:
            return response
        with closing(response):
            url = target(url, response.headers.get("Location", ""))
    raise DownloadError(f"The server redirects more than {REDIRECTS} times. Received: {public(url)}")


def target(url, location):
    """Returns where a redirect leads."""
    try:
        url = urljoin(url, location)
        if urlsplit(url).port == 0 or re.search(r"[\x00-\x20\x7f]", url):  # `port` is an error above 65535
            raise ValueError
    except ValueError:
        raise DownloadError(f"The server redirects to what is no URL. Received: {public(location)}") from None
    return url


def check_url(url):
    """Refuses what is not https to a host that everybody reaches."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" or not host or parts.username is not None:
        raise DownloadError(f"Only https is used, the server redirects elsewhere. Received: {public(url)}")
    host = host.rstrip(".")
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        raise DownloadError(f"The server redirects to a private address. Received: {host!r:.200}")
    if NUMBER.fullmatch(host) and not is_address(host):  # 127.1 and 0x7f000001 are addresses to the system alone
        raise DownloadError(f"A host is a name or a whole address. Received: {host!r:.200}")
    check_address(host)


def is_address(host):
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def check_address(host):
    """Refuses an IP address that not everybody reaches, or that stands for such a one; a name passes."""
    if not is_address(host):
        return
    address = ipaddress.ip_address(host.partition("%")[0])
    for each in (address, *embedded(address)):
        if not each.is_global or each.is_multicast or getattr(each, "is_site_local", False):
            raise DownloadError(f"The host is at a private address, which is refused. Received: {str(address)!r}")


def embedded(address):
    """Yields the IPv4 addresses that an IPv6 address may lead to (RFC 4291, 3056, 4380 and 6052)."""
    if address.version == 4:
        return
    yield from filter(None, (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())))
    if any(address in network for network in WITH_IPV4):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def public(url):
    """A URL without its query, which may be signed, for messages."""
    return repr(url.partition("?")[0])[:200]


def first_byte(url, response, wanted, size, page):
    """Checks the head of a response and returns the position of its first byte."""
    status, headers = response.status, response.headers
    if status not in (200, 206):
        problem = REFUSALS.get(status, "the server answers {status}").format(page=page, status=status)
        raise DownloadError(f"{url}: {problem}.")
    if headers.get_content_type() == "text/html":
        raise web_page(url)
    start = 0
    if status == 206:
        match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""), re.ASCII)
        start = int(match[1][:20]) if match else -1
        if start != wanted:
            raise IntegrityError(f"{url} goes on from byte {start:,}, where byte {wanted:,} was asked for.")
    length = headers.get("Content-Length", str(size - start))
    if length != str(size - start):
        raise IntegrityError(f"{url} should have {size:,} bytes. Received: {length!r:.50} from byte {start:,} on")
    return start


def check_start(url, chunk):
    """Recognises what servers and proxies send in place of a file."""
    start = chunk[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise web_page(url)
    if start.startswith(b"version https://git-lfs"):
        raise IntegrityError(f"{url} is the pointer of Git LFS in place of the file.")


def web_page(url):
    return IntegrityError(f"{url} is a web page in place of the file; does a proxy or a login stand between?")


def waiting_time(retry_after, attempt):
    """Seconds to wait, as the server says or twice as long every time; a date counts as no word."""
    told = re.fullmatch(r"\d{1,9}", retry_after or "", re.ASCII)
    return max(SHORTEST_WAIT, int(retry_after)) if told else pause(attempt)


def pause(attempt):
    return min(2**attempt, LONGEST_WAIT)
