"""Quarantine: what becomes of a row that was tried alone and ended its worker all the same.

It is shown, and tried again once in GITREPO_BACKOFF_CAP, alone as before. Because the try may end the process, its next
instant and what is shown are stored with the claim, before it; any end that is written makes the row a normal one again.
"""

from datetime import datetime

from django.conf import settings

from repos.leases import ON_PROBATION, Leased
from repos.schedule import jittered

# Claims in a row that ended without a word: two with others, then one alone.
QUARANTINED = ON_PROBATION + 1


def is_quarantined(row: Leased) -> bool:
    """Whether the claimed `row` is what ends its workers."""
    return row.crashes >= QUARANTINED


def held_until(row: Leased, now: datetime) -> datetime | None:
    """The instant of the next try, which nothing brings forward, if the row's last try stored one; None if it is free."""
    due: datetime | None = getattr(row, row.DUE)
    return due if is_quarantined(row) and due is not None and due > now else None


def wait_seconds(interval_seconds: float, draw: float) -> float:
    """Seconds from one try to the next; `draw` is a uniform number in [0, 1)."""
    longest = max(interval_seconds, settings.GITREPO_BACKOFF_CAP)
    return jittered(longest, settings.GITREPO_POLLING_JITTER, draw)


def sentence(crashes: int) -> str:
    """What users read."""
    return (
        f"quarantined: it ended the worker that tried it {crashes} times in a row, the last time alone. "
        f"It is tried again, alone, every {settings.GITREPO_BACKOFF_CAP:g} s: see the workers' logs and their memory"
    )
