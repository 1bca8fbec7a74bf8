"""How long each kind of work may wait while everything is well. Pure: the settings are the only input.

Who asks too early cries wolf, who asks too late helps nobody: the bounds follow the leases and budgets that are set.
"""

import math

from django.conf import settings

# Between two ticks.
TICK_SECONDS = 1.0
# For a doorbell on its way through a queue, a worker that starts anew, and a machine that is busy.
SLACK_SECONDS = 5.0
# Between two looks for each chore, by beat's entries (repos/migrations/0002): none comes more rarely than once a minute.
CHORE_SECONDS = {"resync": 5.0}
RAREST_CHORE_SECONDS = 60.0
# How far ahead an instant may lie beyond what set it: the resync heals it after 5 seconds, at its next look.
HORIZON_SLACK_SECONDS = 15.0
# Tries in a row of the same work that came to nothing, after which it is not chance.
TRIES = 3


def bound_seconds(lease_seconds: float, *, ahead: int = 0, abreast: int = 1, each_seconds: float = 0.0) -> float:
    """How long work may be due without being taken: a lease, a tick, the session that a doorbell waits for, and some room;
    and where the place that it waits for is busy, the turns of those `ahead` of it, `abreast` at a time.
    """
    queue = TICK_SECONDS + settings.SESSION_BUDGET + SLACK_SECONDS
    return float(lease_seconds + queue + math.ceil(ahead / max(1, abreast)) * each_seconds)


def poll_horizon_seconds(interval_seconds: float | None) -> float:
    """The furthest that a next poll is scheduled ahead, backoff and jitter included, if the host asks for no patience."""
    longest = max(interval_seconds or settings.GITREPO_POLLING_INTERVAL, settings.GITREPO_BACKOFF_CAP)
    return float(longest * (1.0 + settings.GITREPO_POLLING_JITTER) + HORIZON_SLACK_SECONDS)
