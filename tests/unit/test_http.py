"""The HTTP client against a server that says what it is told: waits, retries, pages, errors, and no secret anywhere."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import socket
import string
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.errors import ConfigError, ContractError, SourceError, StoppedError
from engine.sources.answers import NESTED_MAX
from engine.sources.http import Clock, Endpoint, joined
from engine.sources.secrets import Credential, Secrets
from tests.doubles.organization import SPELLINGS
from tests.unit.scripted import Reply, Time, answering, client, serving

OK = Reply(body='{"data": [1.10, 2, 1e-30]}')


def failure(url: str, *, kind: type[Exception] = SourceError, **fields: object) -> str:
    with client(url, **fields) as http, pytest.raises(kind) as caught:  # type: ignore[arg-type]
        http.get("things", {"a": "b"})
    said = str(caught.value)
    assert "\n" not in said
    assert said.isprintable()
    return said


def test_an_answer_has_path_query_status_raw_text_and_exact_numbers() -> None:
    with serving(OK) as server, client(f"{server.url}/prefix/") as http:
        answer = http.get("/v1/things", {"day": "2025-10-01", "page_token": "abc"})
        assert http.requests == 1
    assert answer.url == "/prefix/v1/things?day=2025-10-01&page_token=***"
    assert (answer.status, answer.text) == (200, '{"data": [1.10, 2, 1e-30]}')
    assert [str(value) for value in answer.body["data"]] == ["1.10", "2", "1E-30"]
    assert server.asked[0].target == "/prefix/v1/things?day=2025-10-01&page_token=abc"


def test_numbers_of_any_size_are_read_and_what_is_not_json_is_not() -> None:
    body = '{"many": ' + "9" * 5000 + ', "huge": 1e99999999999999999999, "small": 1e-400}'
    with serving(Reply(body=body)) as server, client(server.url) as http:
        read = http.get("x").body
    assert read == {"many": Decimal("9" * 5000), "huge": "1e99999999999999999999", "small": Decimal("1e-400")}
    for text in ("", "<html>", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1', b"\xff\xfe"):
        with serving(Reply(body=text)) as server:
            assert "expected an answer" in failure(server.url)
            assert len(server.asked) == 3


def test_an_answer_that_is_nested_too_deeply_is_an_error_at_once() -> None:
    within = '{"data": ' + "[" * (NESTED_MAX - 1) + "]" * (NESTED_MAX - 1) + "}"
    with serving(Reply(body=within)) as server, client(server.url) as http:
        assert "data" in http.get("x").body
    for text in (
        '{"data": ' + "[" * NESTED_MAX + "]" * NESTED_MAX + "}",
        '{"a": ' * 450 + "1" + "}" * 450,
        "[" * 100_000,
    ):
        with serving(Reply(body=text)) as server:
            assert "nested too deeply, more than 100 levels; expected an answer" in failure(server.url)
            assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": formatdate(1_760_000_030, usegmt=True)}, 30),
        ({"Retry-After": formatdate(1_750_000_000, usegmt=True)}, 1),
        ({"rateLimit-reset": "9"}, 9),
        ({"X-RateLimit-Reset": "1760000012"}, 12),
        ({"X-RateLimit-Reset": "1750000000"}, 1),
        ({"X-RateLimit-Reset": "1760000012", "rateLimit-reset": "9", "Retry-After": "7"}, 7),
        ({"X-RateLimit-Reset": "1760000012", "rateLimit-reset": "9"}, 9),
        ({"Retry-After": "soon", "rateLimit-reset": "9"}, 9),
    ],
)
def test_429_is_waited_for_as_the_first_header_that_is_there_says(headers: dict[str, str], seconds: float) -> None:
    clock = Time()
    with serving(Reply(429, headers=headers), OK) as server, client(server.url, clock) as http:
        assert http.get("x").status == 200
        assert http.requests == 2
    assert [slept for slept in clock.slept if slept > 1e-6] == [seconds]


def test_without_a_header_waits_double_from_1_second_with_jitter() -> None:
    clock = Time()
    with serving(Reply(429), Reply(503), Reply(500), OK) as server, client(server.url, clock, attempts=4) as http:
        http.get("x")
    first, second, third = [slept for slept in clock.slept if slept > 1e-6]
    assert (1 <= first <= 2, 2 <= second <= 3, 4 <= third <= 5) == (True, True, True)


@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"X-RateLimit-Reset": "1760086400"}])
def test_a_wait_that_is_too_long_is_an_error_that_says_how_long(headers: dict[str, str]) -> None:
    clock = Time()
    with serving(Reply(429, headers=headers)) as server:
        said = failure(server.url, time=clock)
        assert len(server.asked) == 1
    assert f"{next(iter(headers))} asks to wait for 86,400 s; expected at most 300 s; run again later" in said


def test_a_wait_that_was_asked_for_holds_for_all_threads() -> None:
    clock = Time()
    with serving(Reply(429, headers={"Retry-After": "40"}), OK) as server, client(server.url, clock) as http:
        http.get("x")
        http.get("y")
    assert clock.seconds == pytest.approx(40)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again_and_then_an_error(status: int) -> None:
    with serving(Reply(status, body="busy\nnow")) as server:
        said = failure(server.url)
        assert len(server.asked) == 3
    assert said.startswith(f"GET {server.url}/things?a=b: {status} ")
    assert said.endswith("'busy now' (3 attempts); expected an answer")


@pytest.mark.parametrize("status", [400, 404, 405, 409, 422, 451])
def test_what_will_not_pass_is_an_error_at_once(status: int) -> None:
    with serving(Reply(status, body="a" * 5000 + "\x1b[31m")) as server:
        said = failure(server.url)
        assert len(server.asked) == 1
    assert f": {status} " in said
    assert len(said) < 400


@pytest.mark.parametrize(("status", "why"), [(401, "are not accepted"), (403, "do not allow it")])
def test_missing_rights_name_what_is_missing(status: int, why: str) -> None:
    with serving(Reply(status)) as server, client(server.url) as http:
        with pytest.raises(SourceError, match=rf": {status} .*the credentials {why}\); expected the role BillingAdmin"):
            http.get("costs", access="the role BillingAdmin")
        assert http.requests == 1


def test_a_404_is_an_answer_only_where_it_may_be() -> None:
    with serving(Reply(404, body="<none>")) as server, client(server.url) as http:
        assert http.get("x", absent_ok=True).status == 404
        assert [page.status for page in http.pages("x")] == [404]
        with pytest.raises(SourceError):
            list(http.pages("x", absent_ok=False))


def test_a_redirect_is_not_followed() -> None:
    with serving(Reply(302, headers={"Location": "http://user:hidden@elsewhere.example/y?token=hidden"})) as server:
        said = failure(server.url)
        assert len(server.asked) == 1
    assert "a redirect to 'http://elsewhere.example'" in said
    assert "hidden" not in said


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("/login?token=hidden#hidden", "'/login'"),
        ("https://user:hidden@elsewhere.example:8443/hidden;x", "'https://elsewhere.example:8443'"),
        ("//user:hidden@elsewhere.example/hidden", "'//elsewhere.example'"),
        ("https:/other:hidden@elsewhere.example/x", "what is no URL"),
        ("https://other:hidden", "what is no URL"),
        ("/other:hidden@elsewhere.example", "another path"),
    ],
)
def test_of_a_redirect_to_elsewhere_only_the_host_is_shown(location: str, told: str) -> None:
    with serving(Reply(302, headers={"Location": location})) as server:
        said = failure(server.url)
    assert (f"a redirect to {told}; expected the final URL" in said, "hidden" in said) == (True, False)


def test_of_a_redirect_on_the_same_host_the_path_is_shown() -> None:
    to = "/prom/?token=hidden"
    with answering(lambda asked: Reply(307, headers={"Location": f"http://{asked.headers['Host']}{to}"})) as server:
        assert f"a redirect to '{server.url}/prom';" in failure(server.url)


@pytest.mark.parametrize("location", ["http://[bad", "//[x", "http://a:b/", "\x01", "http://a:99999/", "http:///", ""])
def test_a_redirect_to_what_is_no_url_is_an_error_as_well(location: str) -> None:
    with serving(Reply(302, headers={"Location": location})) as server:
        said = failure(server.url)
    assert "a redirect to" in said


def test_a_refused_connection_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        said = failure(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert "no answer" in said
    assert "refused" in said
    assert "(3 attempts)" in said


def test_a_body_cut_short_is_tried_again() -> None:
    with serving(Reply(body='{"da', length=400), OK) as server, client(server.url) as http:
        assert http.get("x").text == OK.body
        assert http.requests == 2


def test_a_server_that_does_not_answer_in_time_is_tried_again() -> None:
    released = threading.Event()
    slow = Reply(before=lambda: released.wait(10))
    with serving(slow, OK) as server, client(server.url, timeout_seconds=0.05) as http:
        try:
            assert http.get("x").text == OK.body
        finally:
            released.set()


def test_a_body_that_drips_is_given_up_when_the_whole_takes_too_long() -> None:
    # The clock is the server's to turn: every look at it is 2 s later.
    ticks = iter(range(0, 10_000, 2))
    clock = Clock(lambda: 0, lambda: float(next(ticks)), lambda _: None)
    with serving(Reply(body='{"data": ["' + "x" * 500_000 + '"]}')) as server:
        assert "no whole answer within 5 s (3 attempts)" in failure(server.url, time=clock)


def test_an_answer_may_be_compressed_and_not_too_large() -> None:
    packed = Reply(body=gzip.compress(b'{"data": ["' + b"x" * 10_000 + b'"]}'), headers={"Content-Encoding": "gzip"})
    with serving(packed) as server:
        with client(server.url) as http:
            assert len(http.get("x").text) > 10_000
        said = failure(server.url, body_bytes_max=9_999)
    assert "an answer of more than 9,999 bytes" in said
    with serving(Reply(body="no gzip", headers={"Content-Encoding": "gzip"})) as server:
        assert "cannot be decompressed" in failure(server.url)


def test_the_rate_is_polite_over_all_threads() -> None:
    clock, lock = Time(), threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            clock.slept.append(seconds)

    still = Clock(lambda: 0, lambda: 0, sleep)
    with serving(OK) as server, client(server.url, still, requests_per_second=4) as http:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: http.get("x"), range(8)))
        assert http.requests == 8
    assert sorted(clock.slept) == [0.25 * turn for turn in range(1, 8)]


def test_pages_are_followed_by_their_token_alone() -> None:
    first = Reply(body='{"data": [1], "metadata": {"next": "https://elsewhere.example/v9?x=1&page_token=a%2Bb%3D"}}')
    second = Reply(body='{"data": null, "metadata": {"next": "?page_token=c"}}')
    last = Reply(body='{"data": [2], "metadata": {"next": ""}}')
    with serving(first, second, last) as server, client(server.url) as http:
        pages = list(http.pages("things", {"env": "e"}, page_size=2))
    assert [page.body["data"] for page in pages] == [[1], None, [2]]
    assert [asked.target for asked in server.asked] == [
        "/things?env=e&page_size=2",
        "/things?env=e&page_size=2&page_token=a%2Bb%3D",
        "/things?env=e&page_size=2&page_token=c",
    ]
    assert [page.url for page in pages][1] == "/things?env=e&page_size=2&page_token=***"


def test_pages_that_go_round_end_in_an_error() -> None:
    def reply(token: str) -> Reply:
        return Reply(body=f'{{"data": [], "metadata": {{"next": "?page_token={token}"}}}}')

    with serving(reply("a"), reply("b"), reply("a")) as server, client(server.url) as http:
        with pytest.raises(SourceError, match="a page_token came a second time; expected pages that end"):
            list(http.pages("x"))
        assert http.requests == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[]", "an object with a list, data"),
        ("{}", "an object with a list, data"),
        ('{"data": {}}', "an object with a list, data"),
        ('{"data": [], "metadata": 3}', "an object with a list, data"),
        ('{"data": [], "metadata": {"next": "/x?page=2"}}', "no page_token"),
        ('{"data": [], "metadata": {"next": ["x"]}}', "no page_token"),
        ('{"data": [], "metadata": {"next": "http://[x?page_token=1"}}', "no page_token"),
        ('{"data": [], "metadata": {"next": "?page_token=\\ud800"}}', "no page_token"),
        ('{"data": [], "metadata": {"next": "?page_token=a&page_token=b"}}', "no page_token"),
    ],
)
def test_a_page_of_another_form_is_an_error(body: str, said: str) -> None:
    with serving(Reply(body=body)) as server, client(server.url) as http, pytest.raises(SourceError, match=said):
        list(http.pages("x"))


def test_a_page_without_metadata_is_the_last() -> None:
    with serving(Reply(body='{"data": [], "metadata": null}')) as server, client(server.url) as http:
        assert len(list(http.pages("x"))) == 1


def test_a_form_is_posted() -> None:
    with serving(Reply(503), OK) as server, client(server.url) as http:
        answer = http.post("api/v1/query_range", {"query": 'up{a="b&c"}'})
    assert answer.url == "/api/v1/query_range"
    assert [(asked.method, asked.body) for asked in server.asked] == [("POST", "query=up%7Ba%3D%22b%26c%22%7D")] * 2


def test_stop_ends_waits_and_requests() -> None:
    stop = threading.Event()
    with serving(Reply(429, headers={"Retry-After": "200"}, before=stop.set)) as server:
        with client(server.url, Clock(time.time, time.monotonic), stop=stop) as http, pytest.raises(StoppedError):
            http.get("x")
        with client(server.url, stop=stop) as http, pytest.raises(StoppedError):
            http.get("x")
        assert len(server.asked) == 1


def test_a_path_keeps_its_segments() -> None:
    assert joined("env", "a/b?c#d", "ü") == "env/a%2Fb%3Fc%23d/%C3%BC"
    for segment in ("", ".", ".."):
        with pytest.raises(ContractError):
            joined("env", segment)


def test_a_certificate_file_that_is_none_is_the_configuration_s_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(ConfigError, match="a file of certificates, PEM"):
            client("https://127.0.0.1:1", ca_bundle=tmp_path / name)


SECRET, KEY, TOKEN = "canary-secret-5f1d", "CANARYKEY77", "canary-token-81aa"
BASIC = "Q0FOQVJZS0VZNzc6Y2FuYXJ5LXNlY3JldC01ZjFk"


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize(
    "credentials",
    [{"key": SecretStr(KEY), "secret": SecretStr(SECRET)}, {"bearer": SecretStr(TOKEN)}],
    ids=["basic", "bearer"],
)
def test_no_secret_is_ever_said_even_if_the_server_says_it(
    credentials: dict[str, SecretStr], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"{KEY} {SECRET} {BASIC}" if "key" in credentials else TOKEN
    reply = Reply(status, body=f"no json {echo}", headers={"Location": f"/{echo.replace(' ', '-')}", "X-Echo": "x"})
    with serving(reply) as server:
        with client(server.url, **credentials) as http:
            with pytest.raises(SourceError) as caught:
                http.get("x", {"token": TOKEN})
            said = repr(http) + repr(http._endpoint)
        expected = f"Basic {BASIC}" if "key" in credentials else f"Bearer {TOKEN}"
        assert server.asked[0].headers["Authorization"] == expected
    everything = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text + said
    assert [secret for secret in echo.split() if secret in everything] == []


@pytest.mark.parametrize("body", ['{"config": "canary', '["canary"]', '{"data": "canary"}'])
def test_answers_are_not_quoted_unless_they_are_errors(body: str) -> None:
    with serving(Reply(body=body)) as server, client(server.url) as http, pytest.raises(SourceError) as caught:
        list(http.pages("x"))
    assert "canary" not in str(caught.value)
    with serving(Reply(body="<html>Sign in</html>")) as server:
        assert "was cut short: '<html>Sign in</html>' (3 attempts)" in failure(server.url)


def test_an_answer_with_a_secret_of_ours_is_refused_and_not_changed() -> None:
    credentials = {"key": SecretStr(KEY), "secret": SecretStr(SECRET)}
    others = Secrets([Credential(SecretStr(TOKEN)), Credential(SecretStr(f"{SECRET}-2"), SecretStr("reader"))])
    basic = base64.b64encode(f"reader:{SECRET}-2".encode()).decode().rstrip("=")
    for secret in (SECRET, BASIC, TOKEN, basic):
        with serving(Reply(body=f'{{"data": ["{secret}"]}}')) as server:
            said = failure(server.url, **credentials, known=others)
            assert len(server.asked) == 1
        assert said.endswith(
            ": an answer that repeats credentials of the configuration; expected an answer without them, or"
            " credentials that are no common word"
        )


@pytest.mark.parametrize("password", ["k", "kafka", "kafka_id"])
def test_a_secret_that_is_a_part_of_an_answer_is_landed_in_none_however_short(password: str) -> None:
    credentials = {"key": SecretStr("reader"), "secret": SecretStr(password)}
    with serving(Reply(body='{"data": [{"kafka_id": "lkc-1"}]}'), Reply(400, body="no kafka_id here")) as server:
        assert "repeats credentials" in failure(server.url, **credentials)
        assert password not in failure(server.url, **credentials).partition("400 ")[2]


def test_a_question_with_a_secret_of_ours_in_it_is_not_asked() -> None:
    # Whoever lands the answer lands the question with it.
    with serving(OK) as server, client(server.url, bearer=SecretStr("request_bytes")) as http:
        for ask in (lambda: http.post("query", {"query": "sum(request_bytes)"}), lambda: http.get("request_bytes")):
            with pytest.raises(SourceError) as caught:
                ask()
            assert "a question with the credentials in it; expected credentials that are no common word" in str(
                caught.value
            )
            assert "request_bytes" not in str(caught.value)
    assert server.asked == []


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("sign", string.punctuation)
def test_a_secret_of_ours_may_begin_with_any_sign(sign: str) -> None:
    body = " ".join(f"<{way(f'{sign}canary')}>" for way in SPELLINGS.values())
    with serving(Reply(400, body=body)) as server:
        said = failure(server.url, bearer=SecretStr(f"{sign}canary"))
    assert f"'{' '.join(['<***>'] * len(SPELLINGS))}'" in said


@pytest.mark.parametrize("fill", ["", "x", "xx"])
@pytest.mark.parametrize("way", SPELLINGS.values(), ids=SPELLINGS)
def test_what_http_basic_makes_of_a_key_and_a_secret_is_known_without_its_filling(
    way: Callable[[str], str], fill: str
) -> None:
    secret = f"{SECRET}/?>~{fill}"
    credentials = {"key": SecretStr(KEY), "secret": SecretStr(secret)}
    basic = base64.b64encode(f"{KEY}:{secret}".encode()).decode()
    with serving(Reply(400, body=f"<{way(basic.rstrip('='))}> <{way(basic)}>")) as server:
        assert "400 Bad Request '<***> <***>'" in failure(server.url, **credentials)


@pytest.mark.parametrize("way", SPELLINGS.values(), ids=SPELLINGS)
def test_a_secret_of_ours_is_known_in_every_spelling(way: Callable[[str], str]) -> None:
    secret = "canary/\"se+cr\\et='%~"
    credentials = {"key": SecretStr("CANARY/KEY+77"), "secret": SecretStr(secret)}
    written = way(secret) if is_json(f'"{way(secret)}"') else json.dumps(way(secret))[1:-1]
    with serving(Reply(body=f'{{"data": ["<{written}>"]}}')) as server:
        assert "repeats credentials" in failure(server.url, **credentials)
    with serving(Reply(400, body=f"<{way(secret)}> <{way('CANARY/KEY+77')}>")) as server:
        assert "400 Bad Request '<***> <***>'" in failure(server.url, **credentials)


@pytest.mark.parametrize("secret", ["canary77", "\\\\\\canary", 'ca"nary\\7'])
def test_a_long_run_of_backslashes_is_looked_through_once(secret: str) -> None:
    # For each of its places anew, it would take hours.
    run = "\\" * 200_000
    with serving(Reply(400, body=f"{run} {run}u0063{secret}")) as server:
        assert secret not in failure(server.url, bearer=SecretStr(secret))


@pytest.mark.parametrize("before", [" ", "x ", f"{SECRET}\n", "\\u0020"])
def test_a_secret_anywhere_in_a_long_error_is_not_shown_in_part(before: str) -> None:
    for length in (2**16, 2**16 - 5, 2**16 - len(SECRET), 3 * 2**16):
        text = (before * length)[: length - length % len(before)]
        with serving(Reply(400, body=f"{text}{' ' * (length - len(text))}{SECRET}")) as server:
            assert SECRET[:5] not in failure(server.url, bearer=SecretStr(SECRET))


def test_the_phrase_behind_a_status_is_a_text_from_outside() -> None:
    with serving(Reply(401, reason=f"\x1b[31mbad {SECRET} {KEY} " + "x" * 500)) as server:
        said = failure(server.url, key=SecretStr(KEY), secret=SecretStr(SECRET))
    assert f": 401 \\x1b[31mbad *** *** {'x' * 60}" in said
    assert len(said) < 400


def test_nothing_is_kept_of_what_a_404_says() -> None:
    with serving(Reply(404, body=f"no such thing, {SECRET}")) as server, client(server.url) as http:
        answer = http.get("x", absent_ok=True)
        assert (answer.status, answer.text) == (404, "")


@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (f"<html>who is {SECRET}?".encode("utf-16"), "text/html"),
        (f"<html>who is {SECRET}?".encode("utf-16-le"), "text/html; charset=utf-16le"),
        (f"<html>who is {SECRET}?".encode("utf-16-be"), "text/html; charset=none-such"),
        (f"<html>who is {SECRET}?".encode("utf-16-le"), "text/html; charset=utf-8"),
        (f"<html>who is {SECRET}?".encode("utf-32"), "text/html"),
        (f"\xa0<html>who is {SECRET}?".encode("cp1252"), "text/html; charset=windows-1252"),
        (f"<html>who is {SECRET}?".encode("utf-8-sig"), "text/html; charset=unicode_escape"),
    ],
)
def test_an_error_is_read_by_its_charset(content: bytes, kind: str, status: int) -> None:
    reply = Reply(status, body=content, headers={"Content-Type": kind})
    with serving(reply) as server:
        said = failure(server.url, bearer=SecretStr(SECRET))
    assert ("<html>who is ***?" in said or status == 200, "\\x00" in said, "canary" in said) == (True, False, False)


def test_a_letter_of_a_secret_is_known_in_the_charset_of_an_error() -> None:
    known = Secrets([Credential(SecretStr("Straße-canary"))])
    reply = Reply(400, "<p>Straße-canary".encode("latin-1"), {"Content-Type": 'text/html; charset="ISO-8859-1"'})
    with serving(reply) as server:
        assert "'<p>***'" in failure(server.url, known=known)


@pytest.mark.parametrize("secret", ["line\nbreak", "blank in it", "ümlaut", "tail\n"])
def test_a_secret_that_cannot_be_sent_is_refused_and_not_shown(secret: str) -> None:
    for fields in ({"bearer": SecretStr(secret)}, {"key": SecretStr("k"), "secret": SecretStr(secret)}):
        with pytest.raises(ConfigError, match="credentials: a blank or another character") as caught:
            client("http://127.0.0.1:1", **fields)
        assert secret not in str(caught.value)


def test_user_and_password_of_a_url_are_not_shown() -> None:
    with serving(Reply(400)) as server:
        said = failure(server.url.replace("//", "//user:hidden@"))
    assert "hidden" not in said
    assert "hidden" not in repr(Endpoint("http://h", SecretStr("hidden"), SecretStr("hidden")))


def test_proxies_of_the_environment_are_not_used_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    with serving(OK) as server, client(server.url) as http:
        assert http.get("x").status == 200
