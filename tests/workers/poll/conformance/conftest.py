"""The engine that the table is held against, and a server for each line of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from tests.workers.poll.conformance.case import (
    SECONDS,
    Case,
    check_sent,
    collect,
    conclusion,
    git_says,
    request,
)
from tests.workers.poll.conformance.stand_in import stand_in
from workers.git_environment import PROXY_VARIABLES
from workers.poll.engine import Engine, PollResult
from workers.poll.everything import RemoteEngine

Ask = Callable[..., PollResult]
Play = Callable[[Case], None]


@pytest.fixture(autouse=True)
def surroundings(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DATA_DIR = tmp_path / "data"
    settings.GIT_ALLOW_HTTP = True
    settings.GIT_FILE_ROOT = str(tmp_path / "served")
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# How many requests an engine is made for decides how it drives libcurl: what depends on that is tried both ways.
BOTH_WAYS = pytest.mark.parametrize("limit", [50, 1000], ids=["few", "many"])


@pytest.fixture
def limit() -> int:
    return 50


@pytest.fixture
def engine(limit: int) -> Iterator[Engine]:
    engine = RemoteEngine(limit)
    yield engine
    engine.close()


@pytest.fixture
def ask(engine: Engine) -> Ask:
    """One poll: ask(url, *refs, seconds=…, kind=…, secret=…)."""

    def call(url: str, *asked: str, **more: object) -> PollResult:
        engine.start(request(url, *asked, **more))  # type: ignore[arg-type]
        return collect(engine)[1]

    return call


@pytest.fixture
def play(ask: Ask) -> Play:
    """Poll the line's server as often as it says, and compare with what it says, and with git."""

    def run(case: Case) -> None:
        with stand_in(case.script()) as server:
            for says, sent in zip(case.says, case.sent, strict=True):
                result = ask(server.url(case.path), *case.asked, max_refs=case.max_refs, **case.access)
                assert conclusion(result, case.asked) == says, result
                check_sent(server.take(), sent, case.asked, case.object_format, authorized=bool(case.access))
                assert result.seconds < SECONDS
        if case.git:
            with stand_in(case.script()) as server:
                first = case.says[0]
                assert git_says(server.url(case.path), case.asked) == (None if isinstance(first, str) else first)

    return run
