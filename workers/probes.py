"""The questions of `doctor --deep`, as workers take them: under leases, within bounds, and without changing anything."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q

from repos.capped import within_cap
from repos.doctor.bounds import TRIES, bound_seconds
from repos.events import cut
from repos.fields import SecretUnreadable
from repos.heads import only_asked
from repos.leases import Renewer, claim, database_now, finish
from repos.models import Delivery, Probe
from repos.remotes import patience
from workers.access import access_of
from workers.content import Bundle, BundleUnavailable
from workers.debris import debris
from workers.deliver.drivers import driver_for
from workers.deliver.drivers.base import DriverError
from workers.deliver.session import target_of
from workers.poll.claim import follows_of
from workers.poll.engine import Engine, PollRequest

log = structlog.get_logger(__name__)
Kind = Probe.Kind
OpenBundle = Callable[[str], AbstractContextManager[Bundle]]

WAIT_SECONDS = 0.25


def answered(probe: Probe, answer: dict[str, Any]) -> bool:
    return finish(probe, answer=answer, ended_at=database_now(), **Probe.not_due())


def unanswered(probe: Probe, error: str) -> bool:
    """It could not be asked: that is an answer too."""
    return finish(probe, error=cut(error), ended_at=database_now(), **Probe.not_due())


def claim_probes(kind: str, limit: int, seconds: float, where: Q | None = None) -> list[Probe]:
    """Lease due questions of a kind. One that ended its workers again and again is asked no more."""
    while claimed := claim(Probe, limit=limit, seconds=seconds, where=Q(kind=kind) & (where or Q())):
        welcome = []
        for probe in claimed:
            if probe.crashes >= TRIES:
                unanswered(probe, f"the workers that asked died {probe.crashes} times: see their logs")
            else:
                welcome.append(probe)
        if welcome:
            return welcome
    return []


# -- remotes -------------------------------------------------------------------------------------------------------


def ask_remotes(engine: Engine, *, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Ask remotes for their refs, a batch at a time, and store what they say here alone; how many were asked.

    A host gets a quarter of GIT_HOST_CONCURRENCY at once, beside its polls.
    """
    until = time.monotonic() + budget_seconds
    asked = 0
    while time.monotonic() < until and not stopping():
        claimed = claim_probes(Kind.REMOTE, settings.GITREPO_RECONCILER_WORKERS, settings.POLL_LEASE)
        if not claimed:
            break
        asked += _ask_batch(claimed, engine)
    return asked


def _ask_batch(claimed: list[Probe], engine: Engine) -> int:
    probes = Probe.objects.filter(pk__in=[probe.pk for probe in claimed]).select_related("remote__credential")
    rows = {probe.pk: probe for probe in probes}
    candidates = [(pk, probe.remote.host_id) for pk, probe in rows.items() if probe.remote is not None]
    chosen = set(within_cap(candidates, {}, max(1, settings.GIT_HOST_CONCURRENCY // 4)))
    patient = patience({host for _, host in candidates}, database_now())
    follows = follows_of([probe.remote_id for probe in rows.values() if probe.remote_id is not None])
    asked: dict[int, list[str]] = {}
    for pk, probe in rows.items():
        remote = probe.remote
        if remote is None or pk not in chosen:
            finish(probe)  # it stays due
            continue
        if until := patient.get((remote.host_id, remote.credential_id or 0)):
            unanswered(probe, f"the host asked not to be polled before {until:%H:%M:%S} UTC")
            continue
        asked[pk] = sorted({follow.ref for follow in follows.get(remote.pk, ())})
        if not asked[pk]:
            answered(probe, {"refs": {}, "asked": []})
            continue
        try:
            access = access_of(remote)
        except SecretUnreadable as error:
            unanswered(probe, str(error))
            continue
        engine.start(PollRequest(pk, access, tuple(asked[pk]), settings.GIT_TIMEOUT, settings.GIT_MAX_REFS))
    while engine.in_flight:
        for result in engine.wait(WAIT_SECONDS):
            probe = rows[result.key]
            if result.error is not None:
                unanswered(probe, result.error.message)
            else:
                refs = only_asked(result.refs, asked[result.key])
                answered(probe, {"refs": refs, "asked": asked[result.key]})
    return len(chosen)


# -- targets -------------------------------------------------------------------------------------------------------


def ask_targets(open_bundle: OpenBundle, *, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Ask targets one after the other what they have; how many were asked. A target that does not answer in time costs
    its cluster's other questions of this session no time.
    """
    until = time.monotonic() + budget_seconds
    asked = 0
    silent: dict[int, str] = {}
    with Renewer(settings.DELIVERY_LEASE) as renewer:
        while time.monotonic() < until and not stopping():
            probes = claim_probes(Kind.TARGET, 1, settings.DELIVERY_LEASE)
            if not probes:
                break
            with renewer.keeping(probes[0], deadline_seconds=settings.DELIVERY_TIMEOUT + settings.DELIVERY_LEASE):
                _ask_target(probes[0], open_bundle, silent)
            asked += 1
    return asked


def delivery_of(probe: Probe) -> Delivery | None:
    related = Delivery.objects.select_related("gitrepo", "cluster", "applied_bundle")
    return related.filter(probes=probe).first()


def _ask_target(probe: Probe, open_bundle: OpenBundle, silent: dict[int, str]) -> None:
    delivery = delivery_of(probe)
    if delivery is None:
        answered(probe, {"gone": True})
        return
    if delivery.cluster_id in silent:
        unanswered(probe, silent[delivery.cluster_id])
        return
    try:
        found = what_target_has(delivery, open_bundle)
    except DriverError as error:
        if error.cause == "timeout":
            silent[delivery.cluster_id] = str(error)
        unanswered(probe, str(error))
        return
    except (SecretUnreadable, BundleUnavailable) as error:
        unanswered(probe, str(error))
        return
    except Exception:
        log.exception("a target could not be asked in a way that is not known", delivery=delivery.pk)
        unanswered(probe, "asking failed inside fleetsync: see the worker's log")
        return
    now = delivery_of(probe)
    recorded = {
        "epoch": delivery.applied_epoch,
        "sequence": delivery.applied_sequence,
        "bundle": delivery.applied_bundle.sha256 if delivery.applied_bundle is not None else "",
    }
    # Orders are raised before anything is done at a target: what is the same before and after held in between.
    ended = delivery.state in (Delivery.State.APPLIED, Delivery.State.REMOVED)
    moved = not ended or now is None or state_of(now) != state_of(delivery)
    answered(probe, {"recorded": recorded, "found": found, "moved": moved})


def state_of(delivery: Delivery) -> tuple[object, ...]:
    return (delivery.state, delivery.epoch, delivery.sequence, delivery.applied_epoch, delivery.applied_sequence)


def what_target_has(delivery: Delivery, open_bundle: OpenBundle) -> dict[str, Any] | None:
    """Its order, bundle, whether that is complete, and whether its content is the recorded bundle, byte for byte (null: it
    says that it has another one).
    """
    driver = driver_for(delivery.cluster.driver)
    target = target_of(delivery)
    deadline = time.monotonic() + settings.DELIVERY_TIMEOUT
    applied = driver.applied(target, deadline=settings.DELIVERY_TIMEOUT)
    if applied is None:
        return None
    verified = None
    wanted = delivery.applied_bundle
    if wanted is not None and applied.bundle == wanted.sha256 and applied.complete:
        with open_bundle(wanted.sha256) as bundle:
            verified = driver.verify(target, bundle, deadline=deadline - time.monotonic())
    return {
        "epoch": applied.order.epoch,
        "sequence": applied.order.sequence,
        "bundle": applied.bundle,
        "complete": applied.complete,
        "verified": verified,
    }


# -- machines ------------------------------------------------------------------------------------------------------


def look_around(*, stopping: Callable[[], bool]) -> int:
    """Say what lies about on this machine, if somebody asks; how many asked."""
    asked = 0
    with Renewer(settings.JOB_LEASE) as renewer:
        while not stopping():
            probes = claim_probes(Kind.MACHINE, 1, settings.JOB_LEASE, Q(worker_host=settings.WORKER_HOST))
            if not probes:
                break
            with renewer.keeping(probes[0], deadline_seconds=settings.GIT_FETCH_TIMEOUT):
                try:
                    found = debris(bound_seconds(settings.JOB_LEASE), settings.BUNDLE_GRACE)
                    answered(probes[0], {"debris": found})
                except OSError as error:
                    unanswered(probes[0], f"this machine's disk could not be looked at: {error.strerror}")
            asked += 1
    return asked
