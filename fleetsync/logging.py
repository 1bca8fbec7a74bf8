"""One log for everything: structlog and the standard library's loggers end in one formatter, one line for
each event.

What a repository, a server or a user wrote may stand in any value, so nothing unprintable leaves here
unescaped: a branch name with a line feed cannot forge a line. Keys that name a secret lose their value,
whoever logs it.
"""

import datetime as dt
import json
import logging
import re
import select
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Characters kept of one value, and of a traceback, whose end says the most.
MAX_VALUE = 2_000
MAX_TRACEBACK = 8_000
MAX_ITEMS = 50
MAX_DEPTH = 4
REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"passw|secret|token|authori[sz]ation|credentials?_data|api_?key|private_?key|encryption_?key|cookie|signature",
    re.I,
)
# With what a text must contain, in any case, for the pattern to match: asked first, it costs a tenth.
_SECRETS_IN_TEXT = (
    # user:password@ in a URL
    ("@", re.compile(r"(://)[^/\s@?#]+@"), rf"\1{REDACTED}@"),
    ("=", re.compile(r"(?i)\b((?:[a-z]+_)?(?:token|password|secret|api_?key)=)[^&\s'\"]+"), rf"\1{REDACTED}"),
    (
        "author",
        re.compile(r"(?i)\b(authorization\W{1,4}(?:(?:basic|bearer|token)\s+)?)[\w+/=.:-]+"),
        rf"\1{REDACTED}",
    ),
)
# json.dumps makes an encoder for each line.
_JSON = json.JSONEncoder(default=str)
_STAMP = structlog.processors.TimeStamper(fmt="iso", utc=True)
# Where a record carries what log_each() was given.
_BATCH = "batch_of_events"
_PROBES = ("/healthz", "/readyz", "/metrics")


def escape(text: str) -> str:
    """`text` with controls, line breaks, bidirectional marks and the like written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def scrub(text: str) -> str:
    """`text` without what looks secret: the user part of URLs, `token=…`, Authorization headers."""
    lower = text.lower()
    for needed, pattern, replacement in _SECRETS_IN_TEXT:
        if needed in lower:
            text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=1024)
def _names_secret(key: str) -> bool:
    """Of an event's own keys, which are few and in our code."""
    return _SECRET_KEY.search(key) is not None


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON-like data of bounded size in which every text is scrubbed, cut and escaped."""
    if isinstance(value, str):
        return _plain_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            pairs = [(str(key), item) for key, item in list(value.items())[:MAX_ITEMS]]
            return {
                escape(key[:MAX_VALUE]): REDACTED if _SECRET_KEY.search(key) else _plain(item, depth + 1)
                for key, item in pairs
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    try:
        return _plain_text(str(value))
    except Exception as error:  # noqa: BLE001 - a value that cannot be shown must not cost the event
        return f"<{type(value).__name__} that str() refuses: {type(error).__name__}>"


def _plain_text(text: str) -> str:
    # Cut with a margin before scrubbing, so that a value of megabytes costs nothing, and again after it.
    text = scrub(text[: MAX_VALUE * 2])
    if len(text) > MAX_VALUE:
        text = f"{text[:MAX_VALUE]}…"
    return escape(text)


def redact_and_bound(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """A structlog processor: secrets out, unprintable characters escaped, everything of bounded size."""
    for key, value in event_dict.items():
        if key.startswith("_"):
            continue  # structlog's own, dropped before rendering
        if key == "exception":
            lines = scrub(str(value)[-MAX_TRACEBACK:]).splitlines()
            # Indented, so that no line of an exception's text can be taken for an event.
            event_dict[key] = "\n".join(f"    {escape(line)}" for line in lines)
        else:
            event_dict[key] = REDACTED if _names_secret(key) else _plain(value)
    return event_dict


def drop_routine_requests(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """A structlog processor: one line for a request, its end, and none for a probe that went well."""
    event = event_dict.get("event")
    if event == "request_started":
        raise structlog.DropEvent
    if event == "request_finished" and event_dict.get("code", 500) < 400:
        path = str(event_dict.get("request", "")).split(" ", 1)[-1]
        if path.split("?")[0].rstrip("/").rstrip("'>") in _PROBES:
            raise structlog.DropEvent
    return event_dict


def render_console(_: WrappedLogger, __: str, event_dict: EventDict) -> str:
    """A line for people: time, level, event, then key=value with JSON's quotes around what has spaces."""
    timestamp, level = event_dict.pop("timestamp", ""), event_dict.pop("level", "")
    event, exception = event_dict.pop("event", ""), event_dict.pop("exception", "")
    event_dict.pop("logger", None)
    pairs = []
    for key, value in event_dict.items():
        bare = isinstance(value, str) and re.fullmatch(r"[^\s\"'=]+", value)
        pairs.append(f"{key}={value if bare else json.dumps(value, ensure_ascii=False)}")
    line = " ".join([timestamp, f"{level:<7}", str(event), *pairs])
    return f"{line}\n{exception}" if exception else line


def render_json(_: WrappedLogger, __: str, event_dict: EventDict) -> str:
    """A line for machines: one JSON object."""
    return _JSON.encode(event_dict)


def log_each(logger: str, event: str, batch: Sequence[Mapping[str, Any]]) -> None:
    """One line of level info for each of `batch`, as structlog would write it, at a third of the cost: what is the same for
    all is found once, and they are written together where that keeps lines whole.
    """
    where = logging.getLogger(logger)
    if batch and where.isEnabledFor(logging.INFO):
        where.info(event, extra={_BATCH: batch})


class Formatter(structlog.stdlib.ProcessorFormatter):
    """Formats a record of log_each() too."""

    def __init__(self, *, render: Processor, **options: Any) -> None:
        super().__init__(**options)
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        batch: Sequence[Mapping[str, Any]] | None = getattr(record, _BATCH, None)
        if batch is None:
            return super().format(record)
        context = structlog.contextvars.get_contextvars()
        own: EventDict = {"event": record.msg, "level": record.levelname.lower(), "logger": record.name}
        own = _STAMP(None, "", own)
        lines = (self._render(None, "", redact_and_bound(None, "", {**context, **event, **own})) for event in batch)
        return "\n".join(map(str, lines))


def configure(log_format: str, level: str) -> dict[str, Any]:
    """Configures structlog and returns Django's LOGGING. ValueError unless it is `console` or `json`."""
    renderers: dict[str, Processor] = {"console": render_console, "json": render_json}
    if log_format not in renderers:
        raise ValueError(f"LOG_FORMAT is {log_format!r}; it is console or json")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _STAMP,
    ]
    # A library's warning is an event like any other.
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "events": {
                "()": Formatter,
                "render": renderers[log_format],
                "foreign_pre_chain": shared,
                "processors": [
                    drop_routine_requests,
                    structlog.processors.StackInfoRenderer(),
                    structlog.processors.format_exc_info,
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    redact_and_bound,
                    renderers[log_format],
                ],
            }
        },
        "handlers": {"stderr": {"()": StderrHandler, "formatter": "events"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django's defaults hang handlers of their own here, which would write everything twice.
            "django": {"handlers": [], "level": "INFO"},
            # Once a second "sending due task" and "task succeeded" would drown everything else.
            "celery.beat": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "django_celery_beat": {"level": "WARNING"},
            # It repeats what the request's own line says.
            "django.request": {"level": "ERROR"},
            "django.server": {"handlers": [], "propagate": True},
        },
    }


def in_atomic_writes(text: str) -> Iterator[str]:
    """The lines of `text`, as many together as a pipe takes at once: what is longer is mixed with what other processes write
    to the same pipe (POSIX: write(2), PIPE_BUF).
    """
    part: list[str] = []
    size = 0
    for line in text.split("\n"):
        length = len(line.encode()) + 1
        if part and size + length > select.PIPE_BUF:
            yield "\n".join(part)
            part, size = [], 0
        part.append(line)
        size += length
    yield "\n".join(part)


class StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A stream handler for which a formatter may raise DropEvent: the line is dropped, no one complains."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except structlog.DropEvent:
            return ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if not text:
                return
            for part in in_atomic_writes(text) if hasattr(record, _BATCH) else (text,):
                self.stream.write(part + self.terminator)
                self.flush()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as logging.StreamHandler does
            self.handleError(record)
