"""Every Celery task: a doorbell in, one call. What is due is in the database; a task carries nothing.

Whatever a doorbell of an older or a newer version carries is not looked at: it rings all the same.
"""

from functools import cache

from celery import shared_task
from django.conf import settings

from fleetsync.limits import hard_limit
from fleetsync.stopping import stopping
from repos.doorbells import ring_collector
from workers import adopt as adoption
from workers import collect as collecting
from workers import probes
from workers import prune as pruning
from workers import resync as resyncing
from workers import sync as syncing
from workers import tick as ticking
from workers.bundles import open_bundle
from workers.deliver.session import run_session
from workers.poll.engine import Engine
from workers.poll.everything import RemoteEngine
from workers.poll.session import Session

# Adoption shares its processes with the tick, so it makes room for it often.
CONTROL_BUDGET_SECONDS = 2.0


@cache
def _engine() -> Engine:
    """One engine for this process: what it keeps open serves the next session."""
    return RemoteEngine(settings.GITREPO_RECONCILER_WORKERS)


@shared_task(time_limit=hard_limit("control"), ignore_result=True)
def letter(*_: object, **__: object) -> None:
    """From the watchdog to one worker: that it was taken is the answer."""


@shared_task(time_limit=hard_limit("control"), ignore_result=True)
def tick(*_: object, **__: object) -> None:
    ticking.tick()


@shared_task(time_limit=hard_limit("control"), ignore_result=True)
def adopt(*_: object, **__: object) -> None:
    adoption.run_adoptions(budget_seconds=CONTROL_BUDGET_SECONDS, stopping=stopping)
    adoption.run_matching(budget_seconds=CONTROL_BUDGET_SECONDS, stopping=stopping)


@shared_task(time_limit=hard_limit("control"), ignore_result=True)
def resync(*_: object, **__: object) -> None:
    resyncing.resync()


@shared_task(time_limit=hard_limit("control"), ignore_result=True)
def prune(*_: object, **__: object) -> None:
    pruning.prune_when_due()
    ring_collector()


@shared_task(time_limit=hard_limit("poll"), ignore_result=True)
def poll(*_: object, **__: object) -> None:
    engine = _engine()
    try:
        Session(
            engine,
            limit=settings.GITREPO_RECONCILER_WORKERS,
            budget_seconds=settings.SESSION_BUDGET,
            stopping=stopping,
        ).run()
    except BaseException:
        # What is still in flight belongs to a session that is no more: the next one starts with an empty engine.
        _engine.cache_clear()
        engine.close()
        raise
    collecting.sweep_run_folder_sometimes()


@shared_task(time_limit=hard_limit("sync"), ignore_result=True)
def sync(*_: object, **__: object) -> None:
    syncing.run_session(budget_seconds=settings.SESSION_BUDGET, stopping=stopping)


@shared_task(time_limit=hard_limit("sync"), ignore_result=True)
def collect(*_: object, **__: object) -> None:
    collecting.collect_sometimes()


@shared_task(time_limit=hard_limit("deliver"), ignore_result=True)
def deliver(*_: object, **__: object) -> None:
    run_session(open_bundle, budget_seconds=settings.SESSION_BUDGET, stopping=stopping)


@shared_task(time_limit=hard_limit("poll"), ignore_result=True)
def probe_remotes(*_: object, **__: object) -> None:
    engine = _engine()
    try:
        probes.ask_remotes(engine, budget_seconds=settings.SESSION_BUDGET, stopping=stopping)
    except BaseException:
        _engine.cache_clear()
        engine.close()
        raise


@shared_task(time_limit=hard_limit("deliver"), ignore_result=True)
def probe_targets(*_: object, **__: object) -> None:
    probes.ask_targets(open_bundle, budget_seconds=settings.SESSION_BUDGET, stopping=stopping)


@shared_task(time_limit=hard_limit("sync"), ignore_result=True)
def probe_machine(*_: object, **__: object) -> None:
    probes.look_around(stopping=stopping)
