"""Faults of Git servers, of repositories, and of what GitRepos ask for."""

import time
from functools import partial

from tests.end_to_end.manifests import manifest, register_all
from tests.end_to_end.stack import wait_until
from tests.faults.judge import Report, counter
from tests.faults.load import INTERVAL
from tests.faults.processes import http_load
from tests.faults.table import Fault, add, fault
from tests.faults.world import BACKOFF_CAP, TICK, World
from tests.git_servers import Behaviour, Repository

PACK = "git-upload-pack"


def misbehaves(behaviour: Behaviour, seconds: float, world: World, report: Report) -> None:
    """The server misbehaves for one repository for a while, then is well: green without anybody's help."""
    one = http_load(world)
    world.server.behaviour = behaviour
    try:
        one.push()
        time.sleep(seconds)
        shown = world.stack.gitrepo(one.name)["status"]
        report.notes["shown"] = [shown["display_state"], shown["last_error"][:80] or shown["message"][:80]]
    finally:
        world.server.behaviour = Behaviour()
    began = time.monotonic()
    # From its own backoff at the cap: the poll, the fetch, the delivery.
    wait_until("it is delivered", lambda: world.delivered(one), 3 * BACKOFF_CAP + 30, every=0.2)
    report.notes["delivered after"] = round(time.monotonic() - began, 2)
    status = world.stack.gitrepo(one.name)["status"]
    assert status["last_error"] == "", status


_ONE = "load-1.git/"
MISBEHAVIOURS = {
    "e3_hangs_before_its_answer": Behaviour(hang_before=True, only=_ONE, of="poll"),
    "e3_hangs_in_the_refs": Behaviour(hang_after_bytes=20, only=_ONE, of="poll"),
    "e3_hangs_before_the_pack": Behaviour(hang_before=True, only=_ONE + PACK, of="fetch"),
    "e3_stops_in_the_middle_of_a_pack": Behaviour(hang_after_bytes=200, only=_ONE + PACK, of="fetch"),
    "e3_trickles_its_refs": Behaviour(trickle_seconds=10, only=_ONE, of="poll"),
    "e3_trickles_a_pack": Behaviour(trickle_seconds=10, only=_ONE + PACK, of="fetch"),
    "e2_answers_502": Behaviour(status=502, only=_ONE),
    "j5_answers_502_to_fetches": Behaviour(status=502, only=_ONE + PACK, of="fetch"),
    "resets_polls": Behaviour(reset=True, only=_ONE, of="poll"),
    "resets_fetches": Behaviour(reset=True, only=_ONE + PACK, of="fetch"),
    "answers_a_login_page": Behaviour(content_type="text/html", body=b"<html>log in</html>", only=_ONE, of="poll"),
}
for _name, _behaviour in MISBEHAVIOURS.items():
    add(Fault(_name, partial(misbehaves, _behaviour, 6.0), woken=True))


@fault(woken=True)
def e4_answers_429_with_retry_after(world: World, report: Report) -> None:
    """Every remote of that host is left alone for as long as it asked."""
    world.server.log.clear()
    world.server.behaviour = Behaviour(status=429, retry_after="8", only=_ONE, of="poll")
    refused = world.server.wait_for_request(_ONE, of="poll", seconds=20)
    time.sleep(1.5)  # its result is being written, and polls that were under way end
    world.server.behaviour = Behaviour()
    quiet_from, until = time.monotonic(), refused.at + 8
    time.sleep(max(0.0, until - time.monotonic() - 0.5))
    asked = [r for r in world.server.requests() if r.of == "poll" and quiet_from < r.at < until]
    report.notes["asked meanwhile"] = len(asked)
    assert not asked, [request.path for request in asked]
    wait_until("it is asked again", lambda: any(r.of == "poll" and r.at > until for r in world.server.requests()), 30)


@fault(woken=True)
def e1_a_hundred_gitrepos_whose_branch_does_not_exist(world: World, report: Report) -> None:
    """rancher/fleet#3486: backoff with a cap, requests bounded, the healthy ones unaffected."""
    names = [f"e1-{number}" for number in range(100)]
    one = Repository.make(world.stack.repositories / "e1.git")
    one.commit({"deploy/app.yaml": "1\n"})
    url = world.server.url(one)
    register_all(
        world.stack,
        (manifest(name, url, branch=f"missing-{number}", pollingInterval="1s") for number, name in enumerate(names)),
    )
    try:
        wait_until(
            "all are shown",
            lambda: (
                world.sql("SELECT count(*) FROM repos_gitrepo WHERE name LIKE 'e1-%%' AND ref_failures >= 3")
                == [(100,)]
            ),
            60,
        )
        seen, began = len(world.server.polls("e1.git/")), time.monotonic()
        time.sleep(2 * BACKOFF_CAP)
        asked = len(world.server.polls("e1.git/")) - seen
        report.notes["requests of 100 broken ones"] = asked
        assert asked <= (time.monotonic() - began) / (BACKOFF_CAP * 0.9) + 2, asked
    finally:
        for name in names:
            world.stack.api("DELETE", f"gitrepos/{name}/")


@fault(woken=True)
def a_poison_repository_that_kills_its_worker_each_time(world: World, report: Report) -> None:
    """Quarantined, shown, still tried at the cap; the others are untouched."""
    poison = world.follow(1, "poison", interval="1s", http=False)[0]
    wait_until("it was delivered once", lambda: world.delivered(poison), 30)
    world.arm("poll.ask", "kill", about="/poison-0.git", times=0)
    try:
        world.wait_hit("poll.ask", 60, more_than=3)
        status = wait_until(
            "the quarantine shows",
            lambda: (s := world.stack.gitrepo(poison.name)["status"])["last_error"] and s,
            30,
        )
        report.notes["shown"] = status["last_error"][:100]
        marked = world.sql("SELECT url, crashes FROM repos_remote WHERE crashes > 1 AND url NOT LIKE '%%poison%%'")
        assert not marked, marked
        hits, began = len(world.hits("poll.ask")), time.monotonic()
        time.sleep(2 * BACKOFF_CAP)
        tried = len(world.hits("poll.ask")) - hits
        report.notes["tries in quarantine"] = tried
        # A try at the cap, and the lease of the one that died: never in a quick row.
        assert 1 <= tried <= (time.monotonic() - began) / BACKOFF_CAP + 1, tried
        assert not [
            one.name
            for one in world.followed
            if one is not poison and world.stack.gitrepo(one.name)["status"]["last_error"]
        ]
    finally:
        world.disarm("poll.ask")
    commit = poison.push()
    wait_until("it is followed again", lambda: poison.head == commit and world.delivered(poison), 60, every=0.3)
    world.forget([poison])


@fault(woken=True)
def j3_a_job_that_cannot_be_started_for_want_of_its_credential(world: World, report: Report) -> None:
    """rancher/fleet#4948: commit and force are not consumed, the error stays, it goes on by itself."""
    one = Repository.make(world.stack.repositories / "j3.git")
    one.commit({"deploy/app.yaml": "1\n"})
    world.stack.api("POST", "credentials/", {"name": "j3", "kind": "token", "secret": "a"})
    kept = world.sql("SELECT secret FROM repos_credential WHERE name = 'j3'")[0][0]
    world.stack.add_gitrepo(
        "j3", world.server.url(one), branch="main", polling_interval="1s", credential="j3", targets=[{"cluster": "eu"}]
    )
    place = world.folders["eu"] / "j3/current/deploy/app.yaml"
    wait_until("it was delivered once", place.exists, 30)
    world.sql("UPDATE repos_credential SET secret = 'nobody can read this' WHERE name = 'j3'")
    one.commit({"deploy/app.yaml": "2\n"})
    world.stack.api("POST", "gitrepos/j3/sync/")
    status = wait_until("the error shows", lambda: (s := world.stack.gitrepo("j3")["status"])["last_error"] and s, 30)
    report.notes["shown"] = status["last_error"][:100]
    assert status["observed_force_sync_generation"] == 0
    world.sql("UPDATE repos_credential SET secret = %s WHERE name = 'j3'", kept)
    wait_until("it went on by itself", lambda: place.read_text() == "2\n", 60)
    wait_until(
        "the force was handled",
        lambda: world.stack.gitrepo("j3")["status"]["observed_force_sync_generation"] == 1,
        30,
    )
    world.stack.api("DELETE", "gitrepos/j3/")
    wait_until("it is gone", lambda: not world.is_anywhere("j3"), 30)


@fault(woken=True)
def d1_a_force_while_the_answer_to_an_older_question_is_written(world: World, report: Report) -> None:
    """Polling is disabled: if the older answer used up the request, nobody would ever ask for the commit."""
    one = world.follow(1, "d1", http=False)[0]
    wait_until("it was delivered", lambda: world.delivered(one), 30)
    world.stack.api("PATCH", f"gitrepos/{one.name}/", {"disable_polling": True})
    time.sleep(INTERVAL)
    world.arm("poll.store", "sleep", about=f"/{one.name}.git", seconds=3)
    world.stack.api("POST", f"gitrepos/{one.name}/sync/")
    world.wait_hit("poll.store")
    one.push()
    world.stack.api("POST", f"gitrepos/{one.name}/sync/")
    wait_until("the commit is delivered", lambda: world.delivered(one), 30)
    world.forget([one])


@fault(woken=True)
def j7_old_revisions_go_while_new_ones_come(world: World, report: Report) -> None:
    """By count, in batches; what is wanted, applied or newest stays, and so do the doors."""
    one = http_load(world)

    def kept() -> int:
        found = "SELECT count(*) FROM repos_revision r JOIN repos_gitrepo g ON g.id = r.gitrepo_id WHERE g.name = %s"
        return int(world.sql(found, one.name)[0][0])

    for _ in range(14):
        before = world.stack.gitrepo(one.name)["status"]["observed_force_sync_generation"]
        world.stack.api("POST", f"gitrepos/{one.name}/sync/")
        wait_until(
            "the forced sync is handled",
            lambda before=before: (  # type: ignore[misc]
                world.stack.gitrepo(one.name)["status"]["observed_force_sync_generation"] > before
            ),
            60,
        )
    wait_until("old ones are pruned", lambda: counter(world, "pruned") > 0 and kept() <= 12, 60, every=0.5)
    report.notes["revisions kept"] = kept()
    for door in ("", "revisions/", "jobs/", "deliveries/", "events/"):
        world.stack.api("GET", f"gitrepos/{one.name}/{door}")


@fault(woken=True)
def j8_deleted_while_everything_of_it_is_under_way(world: World, report: Report) -> None:
    """Its polls, jobs and metrics end, and what it delivered is removed, or kept where that was asked for."""
    going, staying = world.follow(2, "j8", interval="1s", http=False)
    wait_until("they were delivered", lambda: world.delivered(going) and world.delivered(staying), 30)
    world.stack.api("PATCH", f"gitrepos/{staying.name}/", {"keep_resources": True})
    for point in ("sync.conclude", "deliver.apply"):
        world.arm(point, "sleep", about=going.name, seconds=2)
        going.push()
        world.wait_hit(point)
    with world.lock:
        world.followed = [one for one in world.followed if one not in (going, staying)]
    for one in (going, staying):
        world.stack.api("DELETE", f"gitrepos/{one.name}/")
    wait_until("its content is gone", lambda: not world.is_anywhere(going.name), 30)
    assert all((folder / staying.name / "current/deploy/app.yaml").exists() for folder in world.folders.values())
    wait_until(
        "its rows are gone",
        lambda: world.sql("SELECT count(*) FROM repos_gitrepo WHERE name IN ('j8-0', 'j8-1')") == [(0,)],
        90,
    )
    status, text = world.stack.request("GET", "/metrics")
    assert status == 200
    assert 'gitrepo="j8-' not in text
    time.sleep(2 * INTERVAL + TICK)
    world.log.look()
    seen = len(world.log.polls)
    time.sleep(INTERVAL + TICK)
    world.log.look()
    assert not [p for p in world.log.polls[seen:] if p.gitrepo.startswith("j8-")]
    assert not world.is_anywhere(going.name), "something came back"
