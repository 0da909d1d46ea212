"""One HTTP client for every API: pool, timeouts, polite rate, retries, paging, and what its errors say.

It knows nothing of what it fetches. Time comes from outside (`Clock`), and so does the word to stop. Of what servers
say our own secrets do not leave this module: errors are without them, and an answer with one is refused.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import SplitResult, parse_qs, quote, urlencode, urlsplit

import httpx
import tenacity
from pydantic import SecretStr

from engine.errors import ConfigError, ContractError, SourceError, StoppedError, fault, shown
from engine.sources.answers import Answer, TooDeepError, clean
from engine.sources.secrets import HIDDEN, Credential, Secrets, in_brackets, spellings
from engine.text import printable

__all__ = ["Answer", "Client", "Clock", "Endpoint", "joined"]

WAIT_MAX_SECONDS = 300
"""A server that asks for a longer wait than this is given up until the next run."""
PAGES_MAX = 100_000
"""More pages than this of one list are taken for an endless one."""

for _library in ("httpx", "httpcore"):
    # They log whole URLs, and headers as servers send them.
    logging.getLogger(_library).setLevel(logging.WARNING)

_RETRIED = frozenset({408, 425, 429})
_BACKOFF_MAX_SECONDS = 60
_BODY_SHOWN = 200
_BODY_SEARCHED = 2**16
"""So much of an error's text is looked through: what is shown lies far before the end of it, where a secret may be cut
in two."""
_REASON_SHOWN = 80
_SECRET_PARAMETER = re.compile(r"token|key|secret|password|signature|auth|credential", re.IGNORECASE)
_FINAL_URL = "the final URL in the configuration"
_NO_WORD = "credentials that are no common word"
_KEY_LENGTH_MIN = 4
"""A shorter key, which is a name and no secret, is left in errors: it would be found everywhere."""


class Clock(NamedTuple):
    """The time: `unix` as it is, in seconds, and `monotonic` to measure with. `sleep` if not by the word to stop."""

    unix: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], object] | None = None


class Endpoint(NamedTuple):
    """Where an API is, what opens it (`key` and `secret` by HTTP Basic, or `bearer`), and how gently it is asked.

    `timeout_seconds` bounds a whole answer, from the connection to its last byte. `attempts` counts the first one.
    Certificates are checked against the system's, or against those of `ca_bundle` alone. Proxies of the environment
    are used only with `trust_env`. `known`: the credentials of other endpoints, which no answer may have in it either.
    """

    url: str
    key: SecretStr | None = None
    secret: SecretStr | None = None
    bearer: SecretStr | None = None
    timeout_seconds: float = 60
    requests_per_second: float = 5
    attempts: int = 6
    ca_bundle: Path | None = None
    trust_env: bool = False
    body_bytes_max: int = 256 * 2**20
    known: Secrets = Secrets()


def joined(*segments: str) -> str:
    """A path of segments that may come from outside: each stays one segment, whatever is in it."""
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ContractError(fault("a path", f"segment {shown(segment)}", "an id or a name"))
    return "/".join(quote(segment, safe="") for segment in segments)


class _AgainError(Exception):
    """An attempt that failed in a way that may pass; `seconds` is how long the server asks to wait, if it does."""

    def __init__(self, seen: str, seconds: float | None = None) -> None:
        super().__init__(seen)
        self.seen, self.seconds = seen, seconds


class Client:
    """Asks one endpoint, from as many threads as like, each answer whole or an error.

    A context manager. `stop`, once set, ends every wait and every further request with StoppedError; a request that is
    on its way is waited for until the next bytes come.
    """

    def __init__(self, endpoint: Endpoint, clock: Clock, stop: threading.Event | None = None) -> None:
        self._endpoint, self._clock = endpoint, clock
        self._stop = stop or threading.Event()
        self._secrets = _secrets(endpoint)
        key = endpoint.key.get_secret_value() if endpoint.key else ""
        self._key = spellings([key] if len(key) >= _KEY_LENGTH_MIN else [])
        self._lock, self._free_at = threading.Lock(), clock.monotonic()
        self.requests = 0
        """How many requests were sent, those sent again included."""
        self.unanswered = 0
        """How many were given up without an answer, as often as they may be sent. One that is refused is answered."""
        self._where = _without_user(endpoint.url)
        self._http = httpx.Client(
            auth=_auth(endpoint, self._where),
            verify=_trusted(endpoint),
            timeout=float(endpoint.timeout_seconds),
            follow_redirects=False,
            trust_env=endpoint.trust_env,
            headers={"Accept": "application/json", "User-Agent": "prorata"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._where!r})"

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def get(
        self, path: str, params: Mapping[str, str] | None = None, *, absent_ok: bool = False, access: str = ""
    ) -> Answer:
        """The answer to a GET.

        `absent_ok`: a 404 is an answer. `access` says what the credentials must allow, for the error if they don't.
        Raises SourceError if no whole answer of JSON could be had, or if our own secrets are in it: it could not be
        landed, and is not changed.
        """
        return self._answer(_Asked("GET", path, dict(params or {}), None, absent_ok, access))

    def post(self, path: str, form: Mapping[str, str], *, access: str = "") -> Answer:
        """The answer to a POST of a form. It may be sent more than once, so it must only ask."""
        return self._answer(_Asked("POST", path, {}, dict(form), absent_ok=False, access=access))

    def pages(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        page_size: int | None = None,
        absent_ok: bool = True,
        access: str = "",
    ) -> Iterator[Answer]:
        """The pages of a list, `{"data": [...], "metadata": {"next": url}}`, in order, each as it comes.

        `absent_ok`: a 404 to the first page is a list that is not there. To a later one it never is: what came before
        it would pass for the whole list. Of `next` only the page_token is taken, so no answer decides where credentials
        are sent. Raises SourceError on an answer of another form, and when a token comes a second time.
        """
        asked = dict(params or {})
        if page_size is not None:
            asked["page_size"] = str(page_size)
        tokens = set[str]()
        for _ in range(PAGES_MAX):
            answer = self.get(path, asked, absent_ok=absent_ok and not tokens, access=access)
            token = self._next_token(answer)
            yield answer
            if token is None:
                return
            if token in tokens:
                raise SourceError(fault(self._place(answer), "a page_token came a second time", "pages that end"))
            tokens.add(token)
            asked["page_token"] = token
        raise SourceError(fault(f"{self._where}/{path}", f"more than {PAGES_MAX} pages", "pages that end"))

    def _place(self, answer: Answer) -> str:
        return f"GET {self._where}{self._cleaned(answer.url)}"

    def _next_token(self, answer: Answer) -> str | None:
        """The token of the page after this one; None after the last."""
        if answer.status == 404:
            return None
        body = answer.body
        data = body.get("data", 0) if isinstance(body, dict) else 0
        metadata = (body.get("metadata") or {}) if isinstance(body, dict) else {}
        if not (data is None or isinstance(data, list)) or not isinstance(metadata, dict):
            raise SourceError(fault(self._place(answer), "an answer of another form", "an object with a list, data"))
        following = metadata.get("next")
        if following is None or following == "":
            return None
        parts = _split(following) if isinstance(following, str) else None
        found = parse_qs(parts.query).get("page_token", []) if parts else []
        if len(found) != 1 or clean(found[0]) != found[0]:
            raise SourceError(fault(self._place(answer), "metadata.next has no page_token", "the URL of a page"))
        return found[0]

    def _answer(self, asked: _Asked) -> Answer:
        """One answer, asked for as often as the endpoint allows."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._endpoint.attempts),
            wait=self._seconds,
            retry=tenacity.retry_if_exception_type(_AgainError),
            sleep=self._sleep,
            reraise=True,
        )
        where = self._asked_where(asked)
        # What was asked is landed along with the answer.
        names = map(self._secrets.met, (self._relative(asked), *(asked.form or {}).values()))
        if (name := next((one for one in names if one is not None), None)) is not None:
            raise SourceError(fault(where, f"a question with the credentials in it{in_brackets(name)}", _NO_WORD))
        try:
            return retrying(self._attempt, asked, where)
        except _AgainError as error:
            with self._lock:
                self.unanswered += 1
            attempts = self._endpoint.attempts
            times = f" ({attempts} attempts)" if attempts > 1 else ""
            raise SourceError(fault(where, f"{error.seen}{times}", "an answer")) from None

    def _seconds(self, state: tenacity.RetryCallState) -> float:
        """How long to wait after an attempt; the other threads wait as long if the server asked for it."""
        error = state.outcome.exception() if state.outcome else None
        asked_for = error.seconds if isinstance(error, _AgainError) else None
        if asked_for is None:
            return _BACKOFF(state)
        seconds = max(asked_for, 1.0)
        with self._lock:
            self._free_at = max(self._free_at, self._clock.monotonic() + seconds)
        return seconds

    def _sleep(self, seconds: float) -> None:
        self._check_stop()
        if seconds > 0:
            (self._clock.sleep or self._stop.wait)(seconds)
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise StoppedError(f"{self._where}: stopped while fetching; the next run goes on")

    def _take_turn(self) -> None:
        """Wait for this thread's turn at the polite rate; count the request."""
        with self._lock:
            now = self._clock.monotonic()
            turn = max(now, self._free_at)
            self._free_at = turn + 1 / float(self._endpoint.requests_per_second)
        self._sleep(turn - now)
        with self._lock:
            self.requests += 1

    def _attempt(self, asked: _Asked, where: str) -> Answer:
        self._take_turn()
        deadline = self._clock.monotonic() + float(self._endpoint.timeout_seconds)
        url = f"{self._endpoint.url.rstrip('/')}/{asked.path.lstrip('/')}"
        try:
            with self._http.stream(asked.method, url, params=asked.params or None, data=asked.form) as response:
                text = self._text(response, where, deadline)
                return self._judged(response, text, asked, where)
        except httpx.TimeoutException:
            raise _AgainError(self._too_slow()) from None
        except httpx.TransportError as error:
            if refused := _certificate_fault(error):
                raise SourceError(fault(where, refused, "a certificate that the system or ca_bundle trusts")) from None
            if "location header" in str(error):
                # The library looks at it, though it follows none; it may quote a password in the place of a port.
                raise SourceError(fault(where, "a redirect to what is no URL", _FINAL_URL)) from None
            raise _AgainError(f"no answer: {self._shown(str(error)) if str(error) else type(error).__name__}") from None
        except httpx.DecodingError:
            raise _AgainError("an answer that cannot be decompressed") from None
        except httpx.InvalidURL as error:
            raise SourceError(fault(where, f"no URL: {self._shown(str(error))}", "a URL")) from None

    def _too_slow(self) -> str:
        return f"no whole answer within {float(self._endpoint.timeout_seconds):g} s"

    def _text(self, response: httpx.Response, where: str, deadline: float) -> str:
        """The body, within its limits of size and time."""
        chunks, size = list[bytes](), 0
        for chunk in response.iter_bytes():
            self._check_stop()
            size += len(chunk)
            if size > self._endpoint.body_bytes_max:
                limit = self._endpoint.body_bytes_max
                raise SourceError(fault(where, f"an answer of more than {limit:,} bytes", "a smaller one"))
            if self._clock.monotonic() > deadline:
                raise _AgainError(self._too_slow())
            chunks.append(chunk)
        content = b"".join(chunks)
        if not response.is_success:
            return _decoded(content, response.charset_encoding or "")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise _AgainError("an answer that is not UTF-8") from None

    def _judged(self, response: httpx.Response, text: str, asked: _Asked, where: str) -> Answer:
        """The answer, if its status says that it is one."""
        status, url = response.status_code, self._relative(asked)
        if status == 404 and asked.absent_ok:
            return Answer(url, status, "")
        if response.is_success:
            return self._read(Answer(url, status, text), where)
        said = [self._line(response.reason_phrase)[:_REASON_SHOWN], self._shown(text) if text.strip() else ""]
        seen = " ".join([str(status), *filter(None, said)])
        if status in {401, 403}:
            why = "the credentials are not accepted" if status == 401 else "the credentials do not allow it"
            raise SourceError(fault(where, f"{seen} ({why})", asked.access or "credentials that may read it"))
        if status in _RETRIED or status >= 500:
            raise _AgainError(seen, self._asked_wait(response, seen, where))
        if response.is_redirect:
            location = response.headers.get("location", "")
            target = self._target(location)
            raise SourceError(fault(where, f"{status}, a redirect to {target}", _FINAL_URL))
        raise SourceError(fault(where, seen, "an answer"))

    def _target(self, location: str) -> str:
        """Where a redirect leads, as it may be said: of another host nothing but its name."""
        parts = _split(location)
        own = urlsplit(self._where)
        if parts is None or (parts.scheme and not parts.hostname) or not _has_port(parts):
            return "what is no URL"
        if parts.hostname is None or (parts.hostname, parts.port) == (own.hostname, own.port):
            return "another path" if "@" in parts.path else self._shown(_without_user(location))
        scheme = f"{parts.scheme}:" if parts.scheme else ""
        return self._shown(f"{scheme}//{parts.netloc.rpartition('@')[2]}")

    def _read(self, answer: Answer, where: str) -> Answer:
        """The same answer, if it is JSON without our own secrets."""
        try:
            answer.body  # noqa: B018 - that it can be read is the point
        except TooDeepError as error:
            raise SourceError(fault(where, f"an answer nested too deeply, {error}", "an answer")) from None
        except ValueError:
            # Of pages for people the beginning says most; of anything else it may say too much.
            is_page = answer.text.lstrip().startswith("<")
            what = self._shown(answer.text) if is_page else f"{len(answer.text):,} characters"
            raise _AgainError(f"an answer that is not JSON, or was cut short: {what}") from None
        if (name := self._secrets.met(answer.text)) is not None:
            seen = f"an answer that repeats credentials of the configuration{in_brackets(name)}"
            raise SourceError(fault(where, seen, f"an answer without them, or {_NO_WORD}"))
        return answer

    def _asked_wait(self, response: httpx.Response, seen: str, where: str) -> float | None:
        """How many seconds the server asks to wait: the first header that is there and can be read."""
        now = self._clock.unix()
        for name, read in _WAIT_HEADERS.items():
            seconds = read(response.headers[name].strip(), now) if name in response.headers else None
            if seconds is not None and seconds > WAIT_MAX_SECONDS:
                asked = f"{seen}: {name} asks to wait for {seconds:,.0f} s"
                raise SourceError(fault(where, asked, f"at most {WAIT_MAX_SECONDS} s; run again later"))
            if seconds is not None:
                return seconds
        return None

    def _relative(self, asked: _Asked) -> str:
        """Path and query as they may be landed."""
        prefix = urlsplit(self._endpoint.url).path.rstrip("/")
        query = urlencode(
            {name: HIDDEN if _SECRET_PARAMETER.search(name) else value for name, value in asked.params.items()},
            safe="*:,",
        )
        return f"{prefix}/{asked.path.lstrip('/')}{'?' if query else ''}{query}"

    def _asked_where(self, asked: _Asked) -> str:
        parts = urlsplit(self._where)
        return f"{asked.method} {parts.scheme}://{parts.netloc}{printable(self._cleaned(self._relative(asked)))}"

    def _cleaned(self, text: str) -> str:
        """A text for people without our own secrets, should a server send them back, however it spells them."""
        return self._secrets.hidden(text)

    def _line(self, text: str) -> str:
        """A text from outside on one line, and without our key or secrets."""
        # What is left of UTF-16 that is not told as such would stand between the letters of a secret.
        line = " ".join(text.replace("\0", "").split())
        return printable(self._key.sub(HIDDEN, self._cleaned(line)))

    def _shown(self, text: str) -> str:
        """The same, quoted and short."""
        line = self._line(text[:_BODY_SEARCHED])
        if len(text) > _BODY_SEARCHED and len(line) < _BODY_SEARCHED // 2:
            # Most of it is blank, or hidden: its end might be shown.
            line = self._line(text)
        return shown(line, limit=_BODY_SHOWN)


class _Asked(NamedTuple):
    """A request, without where its path begins."""

    method: str
    path: str
    params: dict[str, str]
    form: dict[str, str] | None
    absent_ok: bool
    access: str


_BACKOFF = tenacity.wait_exponential_jitter(initial=1, max=_BACKOFF_MAX_SECONDS, jitter=1)


def _secrets(endpoint: Endpoint) -> Secrets:
    """What must not be in any text: the endpoint's own credentials, and those of others."""
    found = endpoint.known
    if endpoint.secret is not None:
        found = found.including(Credential(endpoint.secret, endpoint.key))
    return found if endpoint.bearer is None else found.including(Credential(endpoint.bearer))


def _auth(endpoint: Endpoint, where: str) -> httpx.Auth | None:
    if endpoint.bearer is not None:
        return _Bearer(_sendable(endpoint.bearer, where))
    if endpoint.key is not None or endpoint.secret is not None:
        key, secret = (given or SecretStr("") for given in (endpoint.key, endpoint.secret))
        return httpx.BasicAuth(_sendable(key, where), _sendable(secret, where))
    return None


def _sendable(secret: SecretStr, where: str) -> str:
    """The secret's text, if a header can hold it: libraries name a bad one in full when they refuse it."""
    text = secret.get_secret_value()
    if not all("!" <= letter <= "~" for letter in text):
        raise ConfigError(fault(f"{where}: credentials", "a blank or another character that cannot be sent", "ASCII"))
    return text


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def _trusted(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """The certificates to trust; none are loaded where none are needed."""
    if not endpoint.url.lower().startswith("https:"):
        return False
    try:
        return ssl.create_default_context(cafile=endpoint.ca_bundle)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no certificate in it"
        raise ConfigError(fault(f"ca_bundle {endpoint.ca_bundle}", reason, "a file of certificates, PEM")) from None


def _certificate_fault(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate not trusted ({cause.verify_message})"
        cause = cause.__cause__ or cause.__context__
    return None


def _decoded(content: bytes, charset: str) -> str:
    """The text of a page for people, as its first bytes or its charset say, whatever is wrong with it."""
    found: str = json.detect_encoding(content)
    if found == "utf-8" and _CHARSET.fullmatch(charset):
        found = charset
    try:
        return content.decode(found, errors="replace")
    except LookupError:
        return content.decode(errors="replace")


def _split(url: str) -> SplitResult | None:
    """The parts of a URL from outside; None if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _has_port(parts: SplitResult) -> bool:
    """Whether what stands behind the host's colon is a port, if anything does."""
    try:
        return parts.port is None or parts.port >= 0
    except ValueError:
        return False


def _without_user(url: str) -> str:
    """A URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/") if parts.netloc else parts.path


def _until(text: str, now: float) -> float | None:
    """Seconds from now until a Unix time."""
    return max(float(text) - now, 0.0) if _NUMBER.fullmatch(text) else None


def _seconds_or_date(text: str, now: float) -> float | None:
    """Seconds, written as such or as the date of HTTP when they are over."""
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now, 0.0)


_CHARSET = re.compile(r"(iso-?8859|windows-|cp|utf-)[0-9-]+|latin-?1", re.IGNORECASE)
"""Charsets of pages; Python knows others, which are codes of other kinds."""
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")
_WAIT_HEADERS: dict[str, Callable[[str, float], float | None]] = {
    "Retry-After": _seconds_or_date,
    "rateLimit-reset": lambda text, _: _until(text, 0),
    "X-RateLimit-Reset": _until,
}
"""How a server says how long to wait; the first that is there and can be read counts."""
