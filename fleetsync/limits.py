"""Hard limits of the Celery tasks: when a worker's child is killed, whatever it does.

Each is the longest that a healthy task takes plus room for its database writes, so that only what hangs is
killed. What a killed child held is leased and is claimed again.
"""

import math

from django.conf import settings

# Seconds after the last network deadline for writing results and letting go.
POLL_DRAIN = 30
SYNC_DRAIN = 120
DELIVERY_DRAIN = 60
CONTROL = 120


def hard_limit(queue: str) -> int:
    """Whole seconds that a task on `queue` may run. Raises KeyError for a queue that does not exist.

    A session claims until SESSION_BUDGET is over; what it claimed last may take its own whole timeout.
    """
    limits = {
        "control": CONTROL,
        "poll": settings.SESSION_BUDGET + settings.GIT_TIMEOUT + POLL_DRAIN,
        "sync": settings.SESSION_BUDGET + settings.GIT_FETCH_TIMEOUT + SYNC_DRAIN,
        "deliver": settings.SESSION_BUDGET + settings.DELIVERY_TIMEOUT + DELIVERY_DRAIN,
    }
    return math.ceil(limits[queue])
