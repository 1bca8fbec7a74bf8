"""The log: one line for one event, whatever a repository writes into it, and no secrets."""

import io
import json
import logging
import re
import select
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from fleetsync import logging as our_logging

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z (info|warning|error) ")
FORGED = "2026-01-01T00:00:00.000000Z error   all is lost"
CANARY = "hunter2-s3cr3t"


class Log:
    """What the project's handler would have written for a logger of the test."""

    def __init__(self, log_format: str) -> None:
        configuration = our_logging.configure(log_format, "INFO")
        formatter = {**configuration["formatters"]["events"]}
        self.stream = io.StringIO()
        self.handler = our_logging.StderrHandler(self.stream)
        self.handler.setFormatter(formatter.pop("()")(**formatter))
        # Not below "tests": caching loggers of the project are left alone.
        self.name = f"log-under-test-{log_format}"
        self.stdlib = logging.getLogger(self.name)
        self.stdlib.handlers, self.stdlib.propagate = [self.handler], False
        self.stdlib.setLevel(logging.INFO)
        self.structlog = structlog.stdlib.get_logger(self.name)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")[:-1]


@pytest.fixture(params=["console", "json"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield Log(request.param)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def json_log() -> Log:
    return Log("json")


@pytest.mark.parametrize(
    "hostile",
    [
        f"main\n{FORGED}",
        f"main\r\n{FORGED}",
        f"main\r{FORGED}",
        f"main\x85{FORGED}",
        f"main\u2028{FORGED}",
        f"main\v{FORGED}",
        "main\x1b[2J\x1b[31mred",
        "main\x00\x07\x7f\x9b",
        "admin\u202egnp.exe",
        "a\u2066b\u2069",
        "broken \udcff surrogate",
    ],
    ids=[
        "LF",
        "CRLF",
        "CR",
        "NEL",
        "line separator",
        "VT",
        "ANSI",
        "controls",
        "bidi override",
        "bidi isolate",
        "surrogate",
    ],
)
def test_nothing_a_repository_writes_forges_a_line(log: Log, hostile: str) -> None:
    log.structlog.info("poll", branch=hostile, nested={"commit": [hostile, {hostile: hostile}]})
    log.structlog.info(hostile)
    log.structlog.info("author is %s", hostile)
    log.stdlib.warning("fetch of %s failed", hostile)
    log.stdlib.info(hostile, extra={"branch": hostile})
    structlog.contextvars.bind_contextvars(ref=hostile)
    log.structlog.info("bound")
    log.structlog.info("an object", value=type("Odd", (), {"__str__": lambda self: hostile})())
    assert len(log.lines) == 7
    assert all(line.isprintable() for line in log.lines)
    assert not any(line.startswith(FORGED[:20]) for line in log.lines)


def test_no_line_of_an_exception_looks_like_an_event(log: Log) -> None:
    try:
        raise ValueError(f"bad ref\n{FORGED}\x1b[2J")
    except ValueError:
        log.structlog.exception("poll failed")
        log.stdlib.exception("fetch failed")
    events = [line for line in log.lines if not line.startswith("    ")]
    assert len(events) == 2
    assert "ValueError: bad ref" in log.text
    assert "\x1b" not in log.text


def test_times_are_iso_in_utc(log: Log) -> None:
    log.structlog.info("poll")
    log.stdlib.info("poll")
    if log.name.endswith("json"):
        assert all(json.loads(line)["timestamp"].endswith("Z") for line in log.lines)
    else:
        assert all(LINE.match(line) for line in log.lines)


def test_json_is_one_object_with_its_values(json_log: Log) -> None:
    json_log.structlog.info("Reconciling GitRepo status", gitrepo="shop", lag=0.4, ok=True, nothing=None)
    (line,) = json_log.lines
    parsed = json.loads(line)
    parsed.pop("timestamp")
    assert parsed == {
        "event": "Reconciling GitRepo status",
        "level": "info",
        "logger": json_log.name,
        "gitrepo": "shop",
        "lag": 0.4,
        "ok": True,
        "nothing": None,
    }


def test_many_events_are_written_as_one_by_one(log: Log) -> None:
    batch: list[dict[str, Any]] = [
        {"repository": "https://git.example.com/a.git", "lag": 0.25},
        {"repository": f"b\n{FORGED}", "lag": None},
    ]
    with structlog.contextvars.bound_contextvars(request_id="r1", lag="the event's own wins"):
        for event in batch:
            log.structlog.info("poll", **event)
        one_by_one = log.text
        our_logging.log_each(log.name, "poll", batch)
    together = log.text.removeprefix(one_by_one)

    def said(text: str) -> list[Any]:
        if log.name.endswith("json"):
            return [{**json.loads(line), "timestamp": ""} for line in text.splitlines()]
        return [sorted(line.split()[1:]) for line in text.splitlines()]

    assert "r1" in together
    assert said(together) == said(one_by_one)


class Writes(io.StringIO):
    """Remembers what each flush wrote, as a pipe would see it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def flush(self) -> None:
        self.written.append(self.getvalue())
        self.truncate(0)
        self.seek(0)


@pytest.mark.parametrize("word", ["x", "ü"])
def test_no_write_of_many_events_is_longer_than_a_pipe_takes_at_once(log: Log, word: str) -> None:
    stream = Writes()
    log.handler.setStream(stream)

    our_logging.log_each(log.name, "poll", [{"number": number, "what": word * 300} for number in range(200)])

    assert 10 < len(stream.written) < 200
    assert all(len(text.encode()) <= select.PIPE_BUF and text.endswith("\n") for text in stream.written)
    assert "".join(stream.written).count("\n") == 200


def test_many_events_below_the_level_are_not_written(log: Log) -> None:
    logging.getLogger(log.name).setLevel("WARNING")
    try:
        our_logging.log_each(log.name, "poll", [{"lag": 1}])
    finally:
        logging.getLogger(log.name).setLevel("NOTSET")
    our_logging.log_each(log.name, "poll", [])
    assert not log.text


@pytest.mark.parametrize("values", [{"password": CANARY}, {"url": f"https://user:{CANARY}@git.example.com/x.git"}])
def test_secrets_are_redacted_in_many_events(log: Log, values: dict[str, Any]) -> None:
    our_logging.log_each(log.name, "poll", [values])
    assert CANARY not in log.text
    assert our_logging.REDACTED in log.text


@pytest.mark.parametrize(
    "values",
    [
        {"password": CANARY},
        {"lease_token": CANARY},
        {"client_secret": CANARY},
        {"Authorization": f"Bearer {CANARY}"},
        {"headers": {"authorization": f"Basic {CANARY}", "set-cookie": CANARY}},
        {"credentials": [{"ssh_private_key": CANARY}]},
        {"url": f"https://user:{CANARY}@git.example.com/x.git"},
        {"url": f"https://{CANARY}@git.example.com/x.git"},
        {"url": f"https://git.example.com/x.git?private_token={CANARY}&a=b"},
        {"error": f"fatal: could not read from 'https://x-token:{CANARY}@git.example.com'"},
        {"error": f"sent header Authorization: Bearer {CANARY}"},
        {"error": f"{{'Authorization': 'Basic {CANARY}'}}"},
        {"error": f"sent header AUTHORIZATION: BEARER {CANARY}"},
        {"error": f"sent header author\u0131zation: bearer {CANARY}"},
        {"environ": ["GIT_PASSWORD=" + CANARY]},
        {"environ": ["git_api_key=" + CANARY]},
    ],
    ids=lambda values: str(values)[:40].replace(CANARY, "…"),
)
def test_secrets_are_redacted(log: Log, values: dict[str, Any]) -> None:
    log.structlog.info("poll", **values)
    try:
        raise (
            RuntimeError(str(values))
            if any(part in str(v) for v in values.values() for part in ("://", "Authoriz", "sent header"))
            else OSError
        )
    except (RuntimeError, OSError):
        log.structlog.exception("failed")
    assert CANARY not in log.text
    assert our_logging.REDACTED in log.text


@pytest.mark.parametrize(
    "text",
    [
        "https://git.example.com/team/shop.git",
        "git@git.example.com:team/shop.git",
        "commit 34c224ac of main",
        "a@b://c",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert our_logging.scrub(text) == text


def test_long_values_are_cut(log: Log) -> None:
    log.structlog.info("commit", message="m" * 1_000_000, files=list(range(100_000)), deep=[[[[[["x" * 9999]]]]]])
    assert len(log.text) < 10_000


def test_a_value_that_cannot_be_shown_costs_nothing(log: Log) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.structlog.info("poll", value=Broken())
    assert "Broken" in log.text


def test_a_request_is_one_line_and_a_good_probe_none(json_log: Log) -> None:
    json_log.structlog.info("request_started", request="GET /api/v1/gitrepos/")
    json_log.structlog.info("request_finished", request="GET /api/v1/gitrepos/", code=200)
    json_log.structlog.info("request_finished", request="GET /readyz", code=200)
    json_log.structlog.info("request_finished", request="GET /readyz", code=503)
    assert [(json.loads(line)["request"], json.loads(line)["code"]) for line in json_log.lines] == [
        ("GET /api/v1/gitrepos/", 200),
        ("GET /readyz", 503),
    ]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="LOG_FORMAT is 'xml'"):
        our_logging.configure("xml", "INFO")
