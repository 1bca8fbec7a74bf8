"""A delivery session: claim deliveries within what each cluster allows, and bring each to its target in a thread."""

import json
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial

import structlog
from django.conf import settings
from django.db import transaction

from fleetsync.failpoints import hit
from fleetsync.stopping import drain_seconds
from repos.capped import claim_capped
from repos.fields import SecretUnreadable
from repos.leases import Renewer
from repos.models import Delivery, GitRepo
from repos.quarantine import is_quarantined
from workers.content import Bundle, BundleUnavailable
from workers.deliver import outcome
from workers.deliver.crew import Crew
from workers.deliver.drivers import driver_for
from workers.deliver.drivers.base import DriverError, Order, Target, TargetAhead

log = structlog.get_logger(__name__)

OpenBundle = Callable[[str], AbstractContextManager[Bundle]]
LOOK_AGAIN_SECONDS = 0.25
# Deliveries that end within this time are followed by one claim: it takes more statements than writing their ends.
TOGETHER_SECONDS = 0.02
# The part of a session's budget in which it tries suspects, one at a time with nothing beside it; then come the others.
PROBATION_PART = 0.25


def claim_deliveries(limit: int) -> list[Delivery]:
    """Lease at most `limit` due deliveries that are no suspects, never more than DELIVERY_CLUSTER_CONCURRENCY of one
    cluster.
    """
    return _claim(limit, suspects=False)[0]


def claim_suspect() -> list[Delivery]:
    """Lease one due delivery whose last claims ended without a word, to be tried with no other beside it."""
    with transaction.atomic():
        rows, now = _claim(1, suspects=True)
        for row in rows:
            if is_quarantined(row):
                outcome.store_quarantine(row, now)
    for row in rows:
        if is_quarantined(row):
            outcome.tell_of_quarantine(row, now)
    return rows


def _claim(limit: int, *, suspects: bool) -> tuple[list[Delivery], datetime]:
    return claim_capped(
        Delivery,
        group="cluster",
        cap=settings.DELIVERY_CLUSTER_CONCURRENCY,
        limit=limit,
        seconds=settings.DELIVERY_LEASE,
        related=("gitrepo", "cluster", "wanted_revision", "wanted_bundle"),
        suspects=suspects,
    )


def target_of(delivery: Delivery) -> Target:
    gitrepo: GitRepo = delivery.gitrepo
    cluster = delivery.cluster
    return Target(
        gitrepo_uuid=str(gitrepo.uuid),
        gitrepo_name=gitrepo.name,
        gitrepo_created=gitrepo.created_at.timestamp(),
        cluster=cluster.name,
        settings=cluster.settings,
        secrets=json.loads(cluster.secrets.reveal() or "{}") if cluster.secrets else {},
    )


def deliver(delivery: Delivery, open_bundle: OpenBundle) -> None:
    """Bring one claimed delivery to its target, and write how it ended. Never raises for what a target does."""
    try:
        _bring(delivery, open_bundle)
    except TargetAhead as ahead:
        outcome.target_ahead(delivery, ahead.order.epoch, ahead.order.sequence)
    except DriverError as error:
        outcome.failed(delivery, error.cause, str(error))
    except SecretUnreadable as error:
        outcome.failed(delivery, "credential", str(error))
    except BundleUnavailable as error:
        outcome.bundle_missing(delivery, str(error))
    except Exception:
        log.exception("a delivery failed in a way that is not known", delivery=delivery.pk)
        outcome.failed(delivery, "internal", "the delivery failed inside fleetsync: see the worker's log")


def _bring(delivery: Delivery, open_bundle: OpenBundle) -> None:
    driver = driver_for(delivery.cluster.driver)
    target = target_of(delivery)
    order = Order(delivery.epoch, delivery.sequence)
    deadline = time.monotonic() + settings.DELIVERY_TIMEOUT

    def left() -> float:
        return deadline - time.monotonic()

    if delivery.removal:
        hit("deliver.remove", f"{delivery.gitrepo.name} {delivery.cluster.name}")
        driver.remove(target, order, deadline=left())
        outcome.applied(delivery)
        return
    if delivery.wanted_bundle is None:
        raise BundleUnavailable("nothing was bundled for this revision yet")
    with open_bundle(delivery.wanted_bundle.sha256) as bundle:
        if delivery.approved_sequence != delivery.sequence:
            plan = driver.plan(target, bundle, deadline=left())
            if plan.removed_part > settings.DELIVERY_MAX_REMOVED_PART:
                outcome.held_back(delivery, plan.removed, plan.changed + plan.removed + plan.kept)
                return
        hit("deliver.apply", f"{delivery.gitrepo.name} {delivery.cluster.name}")
        driver.apply(target, bundle, order, deadline=left())
        hit("deliver.applied", f"{delivery.gitrepo.name} {delivery.cluster.name}")
        if not driver.verify(target, bundle, deadline=left()):
            raise DriverError("verify", "the target does not have what was applied: somebody else changes it")
    outcome.applied(delivery)


def run_session(open_bundle: OpenBundle, *, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Deliver until nothing is due or the budget is over; how many deliveries were tried."""
    started = time.monotonic()
    until, probation_until = started + budget_seconds, started + budget_seconds * PROBATION_PART
    tried = 0
    alone = False
    # Asked for until there is none, at the beginning: they are rare.
    suspects = True
    next_claim = 0.0
    running: set[Future[None]] = set()
    with (
        Renewer(settings.DELIVERY_LEASE, stopping=stopping, drain_seconds=drain_seconds()) as renewer,
        Crew(settings.DELIVERY_WORKERS, "deliver") as crew,
    ):

        def work(delivery: Delivery) -> None:
            with renewer.keeping(delivery, deadline_seconds=settings.DELIVERY_TIMEOUT + settings.DELIVERY_LEASE):
                deliver(delivery, open_bundle)

        while True:
            now = time.monotonic()
            free = settings.DELIVERY_WORKERS - len(running)
            alone = alone and bool(running)
            if free and not alone and next_claim <= now < until and not stopping():
                suspects = suspects and now < probation_until
                batch = claim_suspect() if suspects and not running else []
                alone = bool(batch)
                suspects = suspects and (alone or bool(running))
                batch = batch or claim_deliveries(free)
                running |= {crew.submit(partial(work, delivery)) for delivery in batch}
                tried += len(batch)
                next_claim = now if len(batch) == free else now + LOOK_AGAIN_SECONDS
            if not running:
                return tried
            patience = next_claim - now if next_claim > now else LOOK_AGAIN_SECONDS
            done, running = wait(running, timeout=patience, return_when=FIRST_COMPLETED)
            for future in done:
                if error := future.exception():
                    # Its lease runs out, and it is delivered again.
                    log.error("a delivery's end could not be written", error=str(error)[:200])
            if done:
                soon = time.monotonic() + TOGETHER_SECONDS
                # What is put off once is not put off again by the next end.
                next_claim = 0.0 if not running else soon if next_claim <= now else min(next_claim, soon)
