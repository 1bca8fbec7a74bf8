"""Scenarios P1 to P4, P10, P11, P14 and P15: who is polled, when, and what is said about it."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.end_to_end.manifests import manifest, register_all
from tests.end_to_end.stack import POLL_LINE, ApiError, Stack, gaps, wait_until
from tests.git_servers import Behaviour, GitServer, Repository, git_server

pytestmark = pytest.mark.end_to_end

TICK = 1.0
# From a due row to its claim there is the tick, a message, and a process that must get a turn on a busy machine.
SLACK = 4.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("served")) as running:
        yield running


def polls_beyond(stack: Stack, name: str, count: int) -> list[datetime]:
    """The claims after the first `count` ones."""
    return stack.polls(name)[count:]


def a_repository(folder: Path, name: str) -> Repository:
    repository = Repository.make(folder / f"{name}.git")
    repository.commit({"deploy/app.yaml": f"{name}\n"})
    return repository


def test_p1_gaps_between_claims_lie_in_the_jittered_interval_and_vary(stack: Stack) -> None:
    names = [f"p1-{number}" for number in range(16)]
    for name in names:
        stack.add_gitrepo(name, a_repository(stack.repositories, name).file_url, branch="main", polling_interval="2s")

    # The first poll of each is asked for by its registration; what follows is the schedule alone.
    wait_until("8 polls of each", lambda: all(len(stack.polls(name)) >= 8 for name in names), 90, every=1)

    found = [gap for name in names for gap in gaps(stack.polls(name)[1:8])]
    assert len(found) >= 96
    assert min(found) >= 2.0
    assert max(found) <= 2.2 + TICK + SLACK
    # Claims follow the tick; what varies is what was planned.
    planned = [
        (datetime.fromisoformat(line["next_poll_at"]) - datetime.fromisoformat(line["claimed_at"])).total_seconds()
        for name in names
        for line in stack.lines(POLL_LINE, gitrepo=name)
        if line["next_poll_at"]
    ]
    assert len({round(wait, 3) for wait in planned}) > 50
    assert 2.0 <= min(planned) <= max(planned) <= 2.2
    for name in names:
        stack.api("DELETE", f"gitrepos/{name}/")


def test_p2_a_thousand_at_once_are_polled_within_the_interval_and_within_the_limit(
    own_stack: Callable[..., Stack], server: GitServer
) -> None:
    interval, limit = 120, 8
    stack = own_stack({"GIT_HOST_CONCURRENCY": str(limit)})
    # Who is asked, and when, is the matter here: all have the refs of one repository, from memory.
    with urlopen(f"{server.url(a_repository(server.root, 'p2'))}/info/refs?service=git-upload-pack") as answer:
        content_type = answer.headers["Content-Type"]
        server.behaviour = Behaviour(content_type=content_type, body=answer.read(), delay_seconds=0.05, only="p2-")
    register_all(
        stack,
        (
            # Paused, so that what is measured is polling: a thousand fetches would share these cores with it.
            manifest(f"p2-{number}", f"{server.address}/p2-{number}.git", pollingInterval=f"{interval}s", paused=True)
            for number in range(1000)
        ),
    )
    registered = time.time()
    most = 0

    def all_polled() -> bool:
        nonlocal most
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if not stack.is_postgresql else "clock_timestamp()"
        most = max(most, stack.sql(f"SELECT count(*) FROM repos_remote WHERE lease_until > {now}")[0][0])
        return stack.sql("SELECT count(*) FROM repos_remote WHERE last_success_at IS NULL") == [(0,)]

    wait_until("all 1000 are polled", all_polled, interval + 20, every=0.05)

    first_polls: dict[str, float] = {}
    for line in stack.lines(POLL_LINE):
        at = datetime.fromisoformat(line["claimed_at"]).timestamp()
        first_polls[line["gitrepo"]] = min(at, first_polls.get(line["gitrepo"], at))
    waited = [at - registered for at in first_polls.values()]
    assert len(waited) == 1000
    assert max(waited) <= interval
    assert 0 < most <= limit


TRIGGERS: dict[str, Callable[[Stack, str, Repository], None]] = {
    "edit": lambda stack, name, _: stack.api("PATCH", f"gitrepos/{name}/", {"paths": ["deploy"]}),
    "force": lambda stack, name, _: stack.api("POST", f"gitrepos/{name}/sync/"),
    "interval": lambda stack, name, _: stack.api("PATCH", f"gitrepos/{name}/", {"polling_interval": "6000ms"}),
    "secret": lambda stack, name, _: stack.api("PATCH", f"credentials/{name}/", {"secret": "another"}),
}


def test_p3_no_trigger_swallows_the_next_poll(stack: Stack, server: GitServer) -> None:
    """rancher/fleet#3138: an edit at half of the interval; polls go on at the edit and an interval after it."""
    repositories = {f"p3-{trigger}": a_repository(server.root, f"p3-{trigger}") for trigger in TRIGGERS}
    for name, repository in repositories.items():
        credential = {}
        if name == "p3-secret":
            stack.api("POST", "credentials/", {"name": name, "kind": "token", "secret": "one"})
            credential = {"credential": name}
        stack.add_gitrepo(name, server.url(repository), branch="main", polling_interval="6s", **credential)
    for name in repositories:
        wait_until(f"{name} is polled", partial(stack.polls, name), 20)
    time.sleep(3)
    triggered = {}
    for trigger, pull in TRIGGERS.items():
        name = f"p3-{trigger}"
        triggered[name] = (time.time(), len(stack.polls(name)))
        pull(stack, name, repositories[name])

    for name, (at, before) in triggered.items():
        wait_until(f"{name} goes on", partial(polls_beyond, stack, name, before + 2), 40, every=0.5)
        woken, second, third = stack.polls(name)[before : before + 3]
        assert 0 <= woken.timestamp() - at <= TICK + SLACK, name
        for gap in gaps([woken, second, third]):
            assert 6.0 <= gap <= 6.6 + TICK + SLACK, name


def test_p4_a_poll_that_fails_or_cannot_be_written_is_followed_by_the_next(stack: Stack, server: GitServer) -> None:
    stack.add_gitrepo("p4", server.url(a_repository(server.root, "p4")), branch="main", polling_interval="1s")
    wait_until("the first poll", lambda: stack.gitrepo("p4")["status"]["last_success_at"], 20)

    server.behaviour = Behaviour(
        content_type="application/x-git-upload-pack-advertisement", body=b"000Xnonsense", only="p4"
    )
    wait_until("a failed poll", lambda: stack.gitrepo("p4")["status"]["consecutive_failures"] >= 2, 20)
    server.behaviour = Behaviour()
    wait_until("recovered", lambda: stack.gitrepo("p4")["status"]["consecutive_failures"] == 0, 20)

    refuse_writes(stack, "p4")
    before = len(stack.polls("p4"))
    wait_until("the failure is shown", lambda: "stored" in stack.gitrepo("p4")["status"]["last_error"], 20)
    allow_writes(stack)
    wait_until("it is polled on", lambda: len(stack.polls("p4")) > before, 20)
    wait_until("green again", lambda: stack.gitrepo("p4")["status"]["last_error"] == "", 20)


def refuse_writes(stack: Stack, name: str) -> None:
    """The database refuses the results of this GitRepo's polls, and nothing else."""
    remote = stack.sql("SELECT remote_id FROM repos_gitrepo WHERE name = %s", name)[0][0]
    if stack.is_postgresql:
        stack.sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.id = {remote} THEN RAISE EXCEPTION 'refused by the test'; END IF; RETURN NEW; END $$"
        )
        stack.sql(
            "CREATE TRIGGER refuse BEFORE UPDATE OF last_success_at ON repos_remote "
            "FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    else:
        stack.sql(
            f"CREATE TRIGGER refuse BEFORE UPDATE OF last_success_at ON repos_remote WHEN NEW.id = {remote} "
            "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        )


def allow_writes(stack: Stack) -> None:
    stack.sql("DROP TRIGGER refuse" + (" ON repos_remote" if stack.is_postgresql else ""))
    if stack.is_postgresql:
        stack.sql("DROP FUNCTION refuse")


def test_p10_a_poll_slower_than_its_interval_is_never_doubled_and_coalesces(stack: Stack, server: GitServer) -> None:
    # A poll is one request, the first one two: each takes more than two seconds, twice the interval.
    server.behaviour = Behaviour(delay_seconds=2.1, only="p10.git")
    try:
        stack.add_gitrepo(
            "p10",
            server.url(a_repository(server.root, "p10")),
            branch="main",
            polling_interval="1s",
            paused=True,
        )
        wait_until("five polls", lambda: len(stack.polls("p10")) >= 5, 60, every=0.5)
        lines = sorted(stack.lines(POLL_LINE, gitrepo="p10"), key=lambda line: str(line["claimed_at"]))
    finally:
        server.behaviour = Behaviour()
        stack.api("DELETE", "gitrepos/p10/")

    starts = [datetime.fromisoformat(line["claimed_at"]) for line in lines]
    for line, gap in zip(lines, gaps(starts), strict=False):
        assert line["poll_seconds"] > 2
        # The next one begins after this one's end, once, however many instants of the schedule went by.
        assert gap >= line["poll_seconds"]
        assert gap <= line["poll_seconds"] + 1.1 + TICK + SLACK


@pytest.mark.parametrize(("interval", "seconds"), [("", 15), ("0", 15), ("5s", 5), ("1h30m", 5400)])
def test_p11_intervals_that_are_accepted(stack: Stack, interval: str, seconds: float) -> None:
    name = f"p11-{interval or 'none'}"
    repository = a_repository(stack.repositories, name)
    stack.add_gitrepo(name, repository.file_url, branch="main", polling_interval=interval, paused=True)

    def schedule() -> float | None:
        status = stack.gitrepo(name)["status"]
        if not (status["last_poll_at"] and status["next_poll_at"]):
            return None
        start, after = (datetime.fromisoformat(status[key]) for key in ("last_poll_at", "next_poll_at"))
        return (after - start).total_seconds()

    planned = wait_until("the next poll is planned", schedule, 20)
    assert seconds <= planned <= seconds * 1.1


@pytest.mark.parametrize("interval", ["1d", "-5s", "soon", "1e9", "NaN", 15, None, ["5s"]])
def test_p11_intervals_that_are_refused(stack: Stack, interval: object) -> None:
    repository = stack.repositories / "any.git"
    with pytest.raises(ApiError) as refusal:
        stack.add_gitrepo("p11-refused", f"file://{repository}", branch="main", polling_interval=interval)

    assert refusal.value.status == 400
    assert list(refusal.value.body) == ["polling_interval"]
    assert stack.sql("SELECT count(*) FROM repos_gitrepo WHERE name = 'p11-refused'") == [(0,)]


def test_p11_a_change_of_interval_url_or_branch_is_polled_at_once(stack: Stack) -> None:
    repository, other = (a_repository(stack.repositories, f"p11-change-{n}") for n in "ab")
    repository.commit({"deploy/app.yaml": "x\n"}, branch="next")
    other.commit({"deploy/app.yaml": "y\n"}, branch="next")
    stack.add_gitrepo("p11-change", repository.file_url, branch="main", polling_interval="1h", paused=True)
    wait_until("the first poll", lambda: stack.polls("p11-change"), 20)

    for change in ({"polling_interval": "2h"}, {"branch": "next"}, {"url": other.file_url}):
        before, at = len(stack.polls("p11-change")), time.time()
        stack.api("PATCH", "gitrepos/p11-change/", change)
        polls = wait_until(f"polled after {change}", partial(polls_beyond, stack, "p11-change", before), 20)
        assert polls[0].timestamp() - at <= TICK + SLACK
    wait_until(
        "the other repository's head",
        lambda: stack.gitrepo("p11-change")["status"]["observed_commit"] == other.head("next"),
        20,
    )


def test_p14_five_hundred_on_one_remote_make_one_request_an_interval(stack: Stack, server: GitServer) -> None:
    """rancher/fleet#3871 and #1352."""
    repository = a_repository(server.root, "p14")
    register_all(
        stack,
        (manifest(f"p14-{n}", server.url(repository), pollingInterval="2s", paused=True) for n in range(500)),
    )
    wait_until(
        "all have seen the head",
        lambda: (
            stack.sql(
                "SELECT count(*) FROM repos_gitrepo WHERE name LIKE 'p14-%%' AND observed_commit = %s",
                repository.head(),
            )
            == [(500,)]
        ),
        180,
        every=0.5,
    )
    time.sleep(1)
    since = time.monotonic()
    seen = len(server.polls("p14.git/"))
    time.sleep(8)
    asked = len(server.polls("p14.git/")) - seen

    assert 2 <= asked <= (time.monotonic() - since) / 2.0 + 1


def test_p15_each_poll_has_one_line_with_repository_commit_lag_and_next_poll(stack: Stack, server: GitServer) -> None:
    repository = a_repository(server.root, "p15")
    stack.add_gitrepo("p15", server.url(repository), branch="main", polling_interval="1s", paused=True)
    wait_until("five polls", lambda: len(stack.polls("p15")) >= 5, 30)
    stack.api("DELETE", "gitrepos/p15/")
    time.sleep(3)

    lines = list(stack.lines(POLL_LINE, gitrepo="p15"))
    assert len(lines) == len(server.polls("p15.git/"))
    for line in lines:
        assert line["repository"] == server.url(repository)
        assert line["commit"] == repository.head()
        assert line["lag_seconds"] >= 0
        assert line["result"] == "ok"
    assert all(
        datetime.fromisoformat(line["next_poll_at"]) > datetime.fromisoformat(line["claimed_at"]) for line in lines[:4]
    )
