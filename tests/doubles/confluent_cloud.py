"""The Confluent Cloud API on a port of this machine: an `Organization` over HTTP, and every way in which that can fail.

```
with served(bundled(date(2025, 9, 1))) as server:
    server.script("/billing/v1/costs", rate_limited("Retry-After", 3), times=2)
    ...  # ask server.url
    assert server.counted("/billing/v1/costs") == 5
```

A prefix is compared with path and query as they were asked for, `/cmk/v2/clusters?environment=env-prod1` included.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import json
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode

from tests.doubles.organization import (
    BILLING_ADMIN,
    ORGANIZATION_ADMIN,
    ORGANIZATION_ID,
    Credential,
    Entity,
    Organization,
)

COSTS = "/billing/v1/costs"
LONGEST_WINDOW = 31
"""Days of costs that may be asked for at once."""
CLOSE_SECONDS = 5


class Listing(NamedTuple):
    """A kind of the inventory as the API lists it. The groups of `path` say in which list an entity is."""

    kind: str
    path: str
    page_size_max: int
    by_environment: bool = False
    last_next: str | None = None


LISTINGS = (
    Listing("environments", "/org/v2/environments", 99),
    Listing("clusters", "/cmk/v2/clusters", 99, by_environment=True, last_next=""),
    Listing("schema_registries", "/srcm/v3/clusters", 50, by_environment=True),
    Listing("ksqldbs", "/ksqldbcm/v2/clusters", 100, by_environment=True, last_next=""),
    Listing("flink_pools", "/fcpm/v2/compute-pools", 50, by_environment=True),
    Listing("service_accounts", "/iam/v2/service-accounts", 99),
    Listing("users", "/iam/v2/users", 99, last_next=""),
    Listing("api_keys", "/iam/v2/api-keys", 100),
    Listing("identity_providers", "/iam/v2/identity-providers", 99),
    Listing("identity_pools", "/iam/v2/identity-providers/([^/]+)/identity-pools", 99, last_next=""),
)
CONNECTORS = "/connect/v1/environments/([^/]+)/clusters/([^/]+)/connectors"
STATEMENTS = "/flink/([^/]+)/([^/]+)/sql/v1/organizations/([^/]+)/environments/([^/]+)/statements"
STATEMENTS_PAGE_SIZE_MAX = 50
COSTS_PAGE_SIZE_MAX = 2000
DEFAULT_PAGE_SIZE = 10


class Request(NamedTuple):
    """What was asked, and what was answered.

    `status` is 0 without an answer, `whole` is false if it was damaged, and with the `last` page a list ends.
    """

    method: str
    path: str
    query: str
    status: int
    whole: bool
    last: bool

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def asked(self) -> dict[str, str]:
        """The query's parameters."""
        return {name: values[0] for name, values in parse_qs(self.query, keep_blank_values=True).items()}


@dataclass(frozen=True)
class Reply:
    """An answer, and how it is sent.

    `page` is what `body` was made of, to be read only, and `token` its own page_token. `silence` seconds pass before
    the first byte, and `pause` between any two of `pieces` of the body; only `sent` bytes of the body are sent.
    `reason` is the phrase behind the status, if not the usual one.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    page: Any = None
    token: str = ""
    silence: float = 0
    pause: float = 0
    pieces: int = 1
    sent: int | None = None
    whole: bool = True
    reason: str | None = None


Fault = Callable[[Reply, Mapping[str, str]], Reply]
"""What becomes of a right answer; it is given the headers of the request, too."""


# Faults


def status(code: int, body: str = "", **headers: str) -> Fault:
    """An answer of this status."""
    content = body or json.dumps({"errors": [{"status": str(code), "detail": f"a fault of {code}"}]})
    kind = {"Content-Type": "application/json"}
    return lambda _, __: Reply(code, content.encode(), kind | headers, whole=False)


def rate_limited(header: str = "", value: int | str = "") -> Fault:
    """429 with a header, Retry-After or rateLimit-reset (seconds) or X-RateLimit-Reset (unix time), or without any."""
    return status(429, json.dumps({"errors": [{"status": "429"}]}), **({header: str(value)} if header else {}))


def dropped() -> Fault:
    """The connection is closed without an answer."""
    return lambda reply, _: replace(reply, status=0, whole=False)


def cut_short(share: float = 0.5) -> Fault:
    """The connection is closed when this share of the body was sent."""
    return lambda reply, _: replace(reply, sent=int(len(reply.body) * share), whole=False)


def slow(seconds: float, pieces: int = 4) -> Fault:
    """A body that takes this long, whole in the end; if its reader has no patience, it will not know."""
    return lambda reply, _: replace(reply, pause=seconds / pieces, pieces=pieces)


def silent(seconds: float) -> Fault:
    """Nothing for this long, then the right answer."""
    return lambda reply, _: replace(reply, silence=seconds)


def truncated(share: float = 0.5) -> Fault:
    """JSON that breaks off, in an answer that is whole as HTTP."""
    return lambda reply, _: replace(reply, body=reply.body[: int(len(reply.body) * share)], whole=False)


def html(code: int = 200) -> Fault:
    """The page of a proxy or a login in the place of an answer."""
    page = b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>"
    return lambda _, __: Reply(code, page, {"Content-Type": "text/html"}, whole=False)


def redirected(url: str) -> Fault:
    """A redirect elsewhere, where no credentials should go."""
    return status(302, Location=url)


def echoing(code: int = 500) -> Fault:
    """An error that repeats the request's headers, credentials included, in its body and its headers."""

    def echo(_: Reply, headers: Mapping[str, str]) -> Reply:
        said = {"Content-Type": "application/json", "X-Echo": headers.get("Authorization", "")}
        return Reply(code, json.dumps({"error": dict(headers)}).encode(), said, whole=False)

    return echo


def revealing(code: int = 500, way: Callable[[str], str] = str) -> Fault:
    """An error that says key and secret, spelled in some way, behind the status and in its body.

    In the body after the escape codes of a terminal, too.
    """

    def reveal(_: Reply, headers: Mapping[str, str]) -> Reply:
        given = headers.get("Authorization", "").partition(" ")[2]
        told = " ".join(map(way, [given, *base64.b64decode(given).decode().split(":", 1)]))
        body = f"\x1b[31m{told}".encode()
        return Reply(code, body, {"Content-Type": "text/plain"}, whole=False, reason=f"\x1b[31mbad {told}")

    return reveal


def changed(change: Callable[[Any], Any], *, whole: bool = False) -> Fault:
    """The right answer after `change`, which may write into it and returns what is sent."""

    def apply(reply: Reply, _: Mapping[str, str]) -> Reply:
        page = change(copy.deepcopy(reply.page))
        return replace(reply, body=written(page).encode(), page=page, whole=whole)

    return apply


def first_record(**fields: Any) -> Fault:
    """The first record of the page has other values; a field given as `...` is missing from it."""

    def change(page: Any) -> Any:
        kept = {name: value for name, value in page["data"][0].items() if fields.get(name) is not ...}
        page["data"][0] = kept | {name: value for name, value in fields.items() if value is not ...}
        return page

    return changed(change)


def looping() -> Fault:
    """A page whose next page is itself; `times` must be enough for the reader to notice."""

    def loop(reply: Reply, headers: Mapping[str, str]) -> Reply:
        url = f"https://api.confluent.cloud/again?{urlencode({'page_token': reply.token})}"
        return changed(lambda page: page | {"metadata": page["metadata"] | {"next": url}})(reply, headers)

    return loop


WRONG_DATA: Mapping[str, Fault] = {
    "amount is text": first_record(amount="abc"),
    "amount is null": first_record(amount=None),
    "amount is missing": first_record(amount=...),
    "no start_date": first_record(start_date=...),
    "resource is text": first_record(resource="lkc-prod1"),
    "unknown product": first_record(product="NEW", line_type="NEVER_SEEN_BEFORE"),
}
"""Answers whose first record is not as it should be."""


_NUMBER = re.compile(r'"\\u0000([^"]*)\\u0000"')


def written(value: Any) -> str:
    """JSON in which a Decimal is a number, to the last digit."""
    # Marked as no text is, since json writes no numbers but its own.
    return _NUMBER.sub(r"\1", json.dumps(value, default=lambda number: f"\0{number}\0"))


# The API


class _RefusedError(Exception):
    """What the API does not do, with the status that says so."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass
class _Scripted:
    prefix: str
    fault: Fault
    times: int
    after: int


class Server:
    """An organization that is being served.

    `requests` are those that came, in the order in which they were answered. `rows_per_page` makes pages smaller than
    what was asked for, `next_url` begins the URL of the next page, whose host no client should trust. Hold `lock` to
    change the organization while somebody may be asking.
    """

    def __init__(
        self, organization: Organization, *, port: int = 0, rows_per_page: int | None = None, next_url: str = ""
    ) -> None:
        self.organization, self.rows_per_page = organization, rows_per_page
        self.lock, self.stop = threading.RLock(), threading.Event()
        self.requests: list[Request] = []
        self._scripts: list[_Scripted] = []
        self._hooks: list[tuple[str, int, Callable[[Organization], object]]] = []
        self._http = _HTTPServer(self, port)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.next_url = next_url or self.url

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the context ends, and raise what then turns out to be wrong with the double itself."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            self._http.shutdown()
            self._http.close_connections()
            self._http.server_close()
            thread.join()
        if self._http.errors:
            raise ExceptionGroup("the double failed", self._http.errors)

    @property
    def flink_url(self) -> str:
        """The template of the URL of Flink in a region."""
        return f"{self.url}/flink/{{region}}/{{cloud}}"

    def script(self, prefix: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """Let the next `times` requests that begin with `prefix` fail, once `after` of them went well.

        Of several faults for a request the first counts, and the others wait.
        """
        with self.lock:
            self._scripts.append(_Scripted(prefix, fault, times, after))

    def clear(self) -> None:
        """Forget the faults that did not happen yet."""
        with self.lock:
            self._scripts.clear()
            self._hooks.clear()

    def before(self, prefix: str, count: int, action: Callable[[Organization], object]) -> None:
        """Do something to the organization just before the `count`-th request from now that begins with `prefix`."""
        with self.lock:
            self._hooks.append((prefix, self.counted(prefix) + count, action))

    def counted(self, prefix: str = "/") -> int:
        """How many requests began with `prefix`, those that failed included."""
        with self.lock:
            return sum(one.target.startswith(prefix) for one in self.requests)

    def passes(self, prefix: str = "/") -> int:
        """How often a list was begun, well: requests for a first page that got it."""
        with self.lock:
            return sum(one.target.startswith(prefix) for one in self.requests if _is_first(one))

    def windows(self) -> Counter[tuple[str, str]]:
        """How often the costs of each window were begun, well: (start_date, end_date) -> times."""
        return self._windows(_is_first)

    def whole_windows(self) -> Counter[tuple[str, str]]:
        """How often the last page of the costs of each window was answered, well."""
        return self._windows(lambda one: one.last and one.whole and one.status == 200)

    def _windows(self, counts: Callable[[Request], bool]) -> Counter[tuple[str, str]]:
        with self.lock:
            asked = [one.asked for one in self.requests if one.path == COSTS and counts(one)]
        return Counter((one["start_date"], one["end_date"]) for one in asked)

    def forget(self) -> None:
        """Count from zero again."""
        with self.lock:
            self.requests.clear()

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Reply:
        """What a request gets, counted."""
        path, _, query = target.partition("?")
        with self.lock:
            self._run_hooks(target)
            reply = self._true_reply(method, path, query, headers)
            fault = self._due_fault(target)
            reply = fault(reply, headers) if fault else reply
            last = reply.page is not None and not _following(reply.page)
            self.requests.append(Request(method, path, query, reply.status, reply.whole, last))
            return reply

    def _run_hooks(self, target: str) -> None:
        for hook in [*self._hooks]:
            prefix, count, action = hook
            if target.startswith(prefix) and self.counted(prefix) + 1 >= count:
                self._hooks.remove(hook)
                action(self.organization)

    def _due_fault(self, target: str) -> Fault | None:
        for script in self._scripts:
            if not target.startswith(script.prefix) or script.times == 0:
                continue
            if script.after:
                script.after -= 1
                continue
            script.times -= 1
            return script.fault
        return None

    def _true_reply(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> Reply:
        try:
            if method != "GET":
                raise _RefusedError(405, f"{method} is not allowed")
            asked = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
            return self._routed(path, asked, headers.get("Authorization", ""))
        except _RefusedError as error:
            error_body = {"id": "e-1", "status": str(error.code), "code": "refused", "detail": error.detail}
            return Reply(error.code, json.dumps({"errors": [error_body]}).encode())

    def _routed(self, path: str, asked: Mapping[str, str], authorization: str) -> Reply:
        organization = self.organization
        if found := re.fullmatch(STATEMENTS, path):
            return self._statements([unquote(group) for group in found.groups()], path, asked, authorization)
        self._check_key(organization.credential, authorization)
        if path == COSTS:
            self._check_role(BILLING_ADMIN, "costs")
            first, end = _window(asked, organization.oldest)
            records = organization.records(first, end)
            return self._page(path, asked, records, COSTS_PAGE_SIZE_MAX, None)
        if found := re.fullmatch(CONNECTORS, path):
            self._check_role(ORGANIZATION_ADMIN, "connectors")
            return self._connectors(unquote(found[1]), unquote(found[2]), asked)
        for listing in LISTINGS:
            if found := re.fullmatch(listing.path, path):
                self._check_role(ORGANIZATION_ADMIN, listing.kind)
                return self._listed(listing, path, tuple(map(unquote, found.groups())), asked)
        raise _RefusedError(404, f"there is no {path}")

    def _check_key(self, expected: Credential, authorization: str) -> None:
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "basic" or given != expected.basic:
            raise _RefusedError(401, "invalid API key: make sure that it is a Cloud API key")

    def _check_role(self, role: str, kind: str) -> None:
        if role not in self.organization.roles:
            raise _RefusedError(403, "Forbidden Access")
        if code := self.organization.denied.get(kind):
            raise _RefusedError(code, f"{kind} cannot be had")

    def _check_exists(self, kind: str, entity_id: str, within: tuple[str, ...] = ()) -> None:
        entity = self.organization.inventory[kind].get(entity_id)
        if entity is None or (within and entity.within != within):
            raise _RefusedError(404, f"there is no {entity_id}")

    def _entities(self, kind: str, within: tuple[str, ...]) -> list[Entity]:
        if kind in self.organization.hidden:
            return []
        return [one for one in self.organization.inventory[kind].values() if one.within == within]

    def _listed(self, listing: Listing, path: str, within: tuple[str, ...], asked: Mapping[str, str]) -> Reply:
        if listing.by_environment:
            if not asked.get("environment"):
                raise _RefusedError(400, "environment is required")
            self._check_exists("environments", asked["environment"])
            within = (asked["environment"],)
        elif within:
            self._check_exists("identity_providers", within[0])
        rows = [one.body for one in self._entities(listing.kind, within)]
        return self._page(path, asked, rows, listing.page_size_max, listing.last_next)

    def _connectors(self, environment: str, cluster: str, asked: Mapping[str, str]) -> Reply:
        self._check_exists("environments", environment)
        self._check_exists("clusters", cluster, (environment,))
        bodies = [one.body for one in self._entities("connectors", (environment, cluster))]
        names = [body["info"]["name"] for body in bodies]
        expand = [name for name in asked.get("expand", "").split(",") if name in {"info", "status", "id"}]
        page: Any = names
        if expand:
            page = {name: {part: body[part] for part in expand} for name, body in zip(names, bodies, strict=True)}
        return Reply(200, written(page).encode(), page=page)

    def _statements(self, place: Sequence[str], path: str, asked: Mapping[str, str], authorization: str) -> Reply:
        region, cloud, organization, environment = place
        expected = self.organization.flink.get(region)
        if expected is None:
            raise _RefusedError(404, f"no Flink in {region}")
        self._check_key(expected, authorization)
        if code := self.organization.denied.get("flink_statements"):
            raise _RefusedError(code, "statements cannot be had")
        if organization != ORGANIZATION_ID:
            raise _RefusedError(404, f"there is no {organization}")
        self._check_exists("environments", environment)
        rows = [one.body for one in self._entities("flink_statements", (region, cloud, environment))]
        return self._page(path, asked, rows, STATEMENTS_PAGE_SIZE_MAX, "")

    def _page(
        self, path: str, asked: Mapping[str, str], rows: Sequence[Any], page_size_max: int, last_next: str | None
    ) -> Reply:
        """A page of rows. A token is good for one list and what was asked of it, as it then is."""
        size = _page_size(asked, page_size_max)
        step = min(size, self.rows_per_page or size)
        about = "&".join([path, *(f"{name}={asked[name]}" for name in sorted(asked) if name not in _PAGING)])
        start = _offset(asked["page_token"], about) if "page_token" in asked else 0
        following = start + step
        metadata: dict[str, Any] = {"first": f"{self.next_url}{path}", "total_size": len(rows)}
        if following < len(rows):
            parameters = {name: value for name, value in asked.items() if name != "page_token"}
            query = urlencode(parameters | {"page_token": _token(following, about)}, quote_via=quote)
            metadata["next"] = f"{self.next_url}{path}?{query}"
        elif last_next is not None:
            metadata["next"] = last_next
        page = {
            "api_version": "v2",
            "kind": "List",
            "metadata": metadata,
            "data": list(rows[start:following]),
        }
        return Reply(200, written(page).encode(), page=page, token=_token(start, about))


_PAGING = ("page_size", "page_token")


def _is_first(request: Request) -> bool:
    return request.whole and request.status == 200 and "page_token" not in request.asked


def _following(page: Any) -> Any:
    metadata = page.get("metadata") if isinstance(page, dict) else None
    return metadata.get("next") if isinstance(metadata, dict) else None


def _page_size(asked: Mapping[str, str], largest: int) -> int:
    text = asked.get("page_size", str(DEFAULT_PAGE_SIZE))
    size = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not 1 <= size <= largest:
        raise _RefusedError(400, f"page_size must be between 1 and {largest}")
    return size


def _token(offset: int, about: str) -> str:
    # Longer than it need be, so that it has all the signs that must be quoted in a URL.
    return base64.b64encode(f"\xfb\xff~{offset}~{about}".encode("latin-1", "replace")).decode()


def _offset(token: str, about: str) -> int:
    try:
        _, offset, meant = base64.b64decode(token, validate=True).decode("latin-1").split("~", 2)
        if meant == about.encode("latin-1", "replace").decode("latin-1"):
            return int(offset)
    except ValueError:
        pass
    raise _RefusedError(400, "page_token is not valid here")


def _window(asked: Mapping[str, str], oldest: date | None) -> tuple[date, date]:
    days = []
    for name in ("start_date", "end_date"):
        text = asked.get(name, "")
        try:
            days.append(date.fromisoformat(text if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else "?"))
        except ValueError:
            raise _RefusedError(400, f"{name} must be YYYY-MM-DD") from None
    first, end = days
    if not first < end:
        raise _RefusedError(400, "start_date must be before end_date")
    if end - first > timedelta(days=LONGEST_WINDOW):
        raise _RefusedError(400, "the date range cannot be longer than one month")
    if oldest is not None and first < oldest:
        raise _RefusedError(400, f"start_date must not be before {oldest}")
    return first, end


# HTTP


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: Server, port: int) -> None:
        super().__init__(("127.0.0.1", port), functools.partial(_Handler, server))
        self.connections: set[socket.socket] = set()
        self.errors: list[Exception] = []
        self.idle = threading.Condition()

    def handle_error(self, *_: object) -> None:
        """Keep what is wrong with the double; a client that has had enough and hangs up is not."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.errors.append(error)

    def close_connections(self) -> None:
        """End the connections that clients keep open, and wait for the threads that serve them."""
        with self.idle:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.idle.wait_for(lambda: not self.connections, timeout=CLOSE_SECONDS)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 2**16
    server: _HTTPServer

    def __init__(self, double: Server, *given: Any) -> None:
        self.double = double
        super().__init__(*given)

    def setup(self) -> None:
        super().setup()
        with self.server.idle:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.idle:
                self.server.connections.discard(self.connection)
                self.server.idle.notify_all()

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.double.answer(self.command, self.path, self.headers)
        if self.double.stop.wait(reply.silence) or reply.status == 0:
            self.close_connection = True
            return
        self.send_response(reply.status, reply.reason)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not self.written(reply):
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that http.server looks for

    def written(self, reply: Reply) -> bool:
        """Send the body; whether all of it was sent."""
        body = reply.body if reply.sent is None else reply.body[: reply.sent]
        length = max(1, -(-len(body) // reply.pieces))
        for start in range(0, len(body), length):
            self.wfile.write(body[start : start + length])
            self.wfile.flush()
            if reply.pause and self.double.stop.wait(reply.pause):
                return False
        return len(body) == len(reply.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(
    organization: Organization, *, port: int = 0, rows_per_page: int | None = None, next_url: str = ""
) -> Iterator[Server]:
    """The organization over HTTP, while the context lasts."""
    server = Server(organization, port=port, rows_per_page=rows_per_page, next_url=next_url)
    with server.running():
        yield server
