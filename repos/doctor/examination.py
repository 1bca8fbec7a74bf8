"""The cheap examination: every question that the database alone can answer, and a word with the broker."""

from collections.abc import Iterator
from datetime import datetime

from repos.doctor import facts, instants, ledger, newest, waiting
from repos.doctor.finding import Finding, Report, report_of
from repos.doctor.snapshot import snapshot
from repos.leases import database_now


def examine() -> Report:
    """Ask everything of one view of the database. The number of queries does not grow with the rows."""
    with snapshot():
        now = database_now()
        findings = list(asked(now))
    return report_of([*findings, *facts.broker(now)], now)


def asked(now: datetime) -> Iterator[Finding]:
    """The findings of all questions that the database answers."""
    for room in (waiting, instants, newest, ledger, facts):
        yield from room.ask(now)
