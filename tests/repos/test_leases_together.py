"""Leases among threads and processes: renewing, claims at the same moment, and what PostgreSQL's locks can do to us."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import connection, connections, transaction
from pytest_django import Settings

from repos.capped import claim_capped
from repos.leases import Renewer, finish
from repos.models import Chore, Delivery, Remote
from tests.core import bundle, cluster, expire, fresh, is_postgresql, later, register
from tests.repos.test_leases import chore, remotes, take_one

ROOT = Path(__file__).resolve().parents[2]


# -- renewing ------------------------------------------------------------------------------------------------------


def wait_for(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.django_db(transaction=True)
def test_a_lease_is_renewed_while_its_work_runs(settings: Settings) -> None:
    chore()
    row = take_one()
    before = row.lease_until

    with Renewer(0.6) as renewer, renewer.keeping(row, deadline_seconds=60):
        wait_for(lambda: fresh(row).lease_until != before)
        expired_at = fresh(row).lease_until
        wait_for(lambda: fresh(row).lease_until > expired_at)

    stopped_at = fresh(row).lease_until
    time.sleep(0.5)
    assert fresh(row).lease_until == stopped_at


@pytest.mark.django_db(transaction=True)
def test_what_still_runs_a_while_after_stopping_is_given_back() -> None:
    chore(crashes=1)
    row = take_one()
    stopping = threading.Event()

    with (
        Renewer(1.5, stopping=stopping.is_set, drain_seconds=1.0) as renewer,
        renewer.keeping(row, deadline_seconds=60),
    ):
        time.sleep(1)
        assert fresh(row).lease_token == row.lease_token
        stopping.set()
        stopped_at = time.monotonic()
        wait_for(lambda: fresh(row).lease_token is None)
        assert time.monotonic() - stopped_at >= 1.0
        assert not finish(row, rounds=9)  # the work was given up

    assert (fresh(row).lease_until, fresh(row).crashes, fresh(row).rounds) == (None, 1, 0)
    assert take_one().crashes == 1


@pytest.mark.django_db(transaction=True)
def test_a_lease_is_not_renewed_beyond_its_deadline() -> None:
    chore()
    row = take_one()

    with Renewer(0.3) as renewer, renewer.keeping(row, deadline_seconds=0.0):
        time.sleep(0.5)
        assert fresh(row).lease_until == row.lease_until


@pytest.mark.django_db(transaction=True)
def test_letting_go_of_a_lost_lease_keeps_the_new_one() -> None:
    """A process that was frozen claims the row again before the thread with the old lease has ended."""
    chore()
    old = take_one()
    expire(old)
    new = take_one()
    with Renewer(0.3) as renewer, renewer.keeping(new, deadline_seconds=60):
        with renewer.keeping(old, deadline_seconds=60):
            pass
        wait_for(lambda: fresh(new).lease_until != new.lease_until)


# -- several processes on the real database ------------------------------------------------------------------------


CLAIMS = """
import sys, time, django
django.setup()
from repos.leases import claim, database_now
from repos.models import Chore
print("ready", flush=True)
sys.stdin.readline()
while rows := claim(Chore, limit=7, seconds=60):
    print(*[row.pk for row in rows], flush=True)
    # The work: without any, one process could be done before the next begins.
    time.sleep(0.01)
"""
CAPPED = """
import random, sys, time, django
django.setup()
from collections import Counter
from repos.capped import claim_capped, live_leases
from repos.leases import finish, database_now
from repos.models import Remote
print("ready", flush=True)
sys.stdin.readline()
idle = 0
while idle < 5:
    rows, _ = claim_capped(Remote, group="host", cap=3, limit=4, seconds=60)
    idle = 0 if rows else idle + 1
    most = max(live_leases(Remote, "host", database_now()).values(), default=0)
    print("most", most, flush=True)
    time.sleep(random.random() * 0.01)
    for row in rows:
        assert finish(row, **Remote.not_due())
        print("done", row.pk, flush=True)
"""


def run_together(script: str, count: int) -> list[list[str]]:
    """The lines that `count` processes print that run `script` at the same moment on the test database."""
    database = connection.settings_dict
    if is_postgresql():
        host = f"{database['HOST']}:{database['PORT'] or 5432}"
        url = f"postgres://{database['USER']}:{database['PASSWORD']}@{host}/{database['NAME']}"
    else:
        url = f"sqlite:///{database['NAME']}"
    env = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "fleetsync.settings"}
    env["DATA_DIR"] = str(django_settings.DATA_DIR)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=env, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0] * count
    return outputs


@pytest.mark.django_db(transaction=True)
def test_processes_claim_each_row_once() -> None:
    Chore.objects.bulk_create(Chore(name=str(number), due_at=later(-5)) for number in range(300))

    outputs = run_together(CLAIMS, 3)

    claimed = [int(pk) for output in outputs for line in output for pk in line.split()]
    assert sorted(claimed) == sorted(Chore.objects.values_list("pk", flat=True))
    assert sum(bool(output) for output in outputs) > 1


@pytest.mark.django_db(transaction=True)
def test_processes_keep_the_cap_of_each_host() -> None:
    remotes(60, hosts=2)

    outputs = run_together(CAPPED, 3)

    lines = [line.split() for output in outputs for line in output]
    done = [int(number) for word, number in lines if word == "done"]
    assert sorted(done) == sorted(Remote.objects.values_list("pk", flat=True))
    assert max(int(number) for word, number in lines if word == "most") <= 3


# -- what PostgreSQL alone can do to us ----------------------------------------------------------------------------


only_postgresql = pytest.mark.skipif("not __import__('tests.core').core.is_postgresql()", reason="PostgreSQL's locks")


def in_thread(work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_rows_that_refer_to_a_group_can_be_made_during_a_claim() -> None:
    """Else a claim over clusters 1 and 2, and a job that wants deliveries at 2 and 1, would wait for each other."""
    one, gitrepo = cluster(), register()
    started, over = threading.Event(), threading.Event()

    def claims() -> None:
        with transaction.atomic():
            claim_capped(Delivery, group="cluster", cap=1, limit=1, seconds=30)
            started.set()
            over.wait(20)

    Delivery.objects.create(gitrepo=gitrepo, cluster=one, due_at=later(-1))
    thread = in_thread(claims)
    assert started.wait(10)
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = 2000")
            Delivery.objects.create(gitrepo=register("other"), cluster=one, wanted_bundle=bundle())
    finally:
        over.set()
        thread.join()


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_cap_is_true_for_a_claim_that_had_to_wait() -> None:
    remotes(4)
    found: list[list[Remote]] = []

    def claims() -> None:
        # One more that has waited longest: not one of those that the other claim has locked.
        Remote.objects.filter(identity="3").update(next_poll_at=later(-100))
        found.append(claim_capped(Remote, group="host", cap=2, limit=2, seconds=30)[0])

    with transaction.atomic():
        assert len(claim_capped(Remote, group="host", cap=2, limit=2, seconds=30)[0]) == 2
        thread = in_thread(claims)
        time.sleep(0.5)
    thread.join(20)

    assert found == [[]]
