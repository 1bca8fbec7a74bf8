"""What a GitRepo's rows say to people: display state, conditions, message. Derived on reading, stored nowhere.

`facts_of` gathers for a page of GitRepos with a fixed number of queries; the rest is pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Count, Max

from repos.models import Delivery, GitRepo, Revision, SyncJob

# From the worst to the best: a GitRepo shows the worst of what is true of it.
ERR_APPLIED = "ErrApplied"
ERR_SYNC = "ErrSync"
ERR_POLLING = "ErrPolling"
HELD = "Held"
PAUSED = "Paused"
PENDING = "Pending"
WAIT_SYNC = "WaitSync"
WAIT_APPLIED = "WaitApplied"
READY = "Ready"
DISPLAY_STATES = (ERR_APPLIED, ERR_SYNC, ERR_POLLING, HELD, PAUSED, PENDING, WAIT_SYNC, WAIT_APPLIED, READY)

State = Delivery.State


@dataclass(frozen=True, slots=True)
class Facts:
    """The rows beside a GitRepo that its status is made of. `states` counts its deliveries by state."""

    gitrepo: GitRepo
    job: SyncJob | None = None
    states: dict[str, int] = field(default_factory=dict)
    delivery_error: str = ""
    applied_at: datetime | None = None
    wanted: Revision | None = None
    # Whether everything that the newest synced revision wants is applied.
    settled: bool = False

    @property
    def wanted_clusters(self) -> int:
        return sum(n for state, n in self.states.items() if state not in (State.REMOVED, State.KEPT))

    @property
    def ready_clusters(self) -> int:
        return self.states.get(State.APPLIED, 0)


@dataclass(frozen=True, slots=True)
class Condition:
    """As in Kubernetes: `status` is True or False."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "status": str(self.status),
            "reason": self.reason,
            "message": self.message,
            "last_transition_time": self.last_transition_time,
        }


def polling_error(gitrepo: GitRepo) -> str:
    """What is wrong with asking the remote; a pinned commit asks nobody."""
    if gitrepo.commit:
        return ""
    return gitrepo.remote.last_error or gitrepo.ref_error


def display_state(facts: Facts) -> str:
    """The worst thing that is true of the GitRepo."""
    gitrepo, job = facts.gitrepo, facts.job
    open_job = job is not None and job.state in (*SyncJob.WAITING, SyncJob.State.RUNNING)
    rules = (
        (facts.states.get(State.FAILED, 0) > 0, ERR_APPLIED),
        (open_job and job is not None and job.failures > 0, ERR_SYNC),
        (bool(polling_error(gitrepo)), ERR_POLLING),
        (facts.states.get(State.HELD, 0) > 0, HELD),
        (gitrepo.paused, PAUSED),
        (gitrepo.latest_revision == 0, PENDING),
        (open_job, WAIT_SYNC),
        (facts.states.get(State.WAITING, 0) > 0, WAIT_APPLIED),
    )
    return next((state for holds, state in rules if holds), READY)


def message(facts: Facts) -> str:
    """The error behind the display state, "" if there is none."""
    job = facts.job
    job_error = job.last_error if job is not None and job.state in (*SyncJob.WAITING, SyncJob.State.RUNNING) else ""
    return facts.delivery_error or job_error or polling_error(facts.gitrepo)


def conditions(facts: Facts) -> list[Condition]:
    """Ready, GitPolling, Reconciling, Stalled and Accepted."""
    gitrepo, job, remote = facts.gitrepo, facts.job, facts.gitrepo.remote
    state = display_state(facts)
    error = polling_error(gitrepo)
    open_job = job is not None and job.state in (*SyncJob.WAITING, SyncJob.State.RUNNING)
    reconciling = open_job or facts.states.get(State.WAITING, 0) > 0
    stalled = state in (ERR_APPLIED, ERR_SYNC, ERR_POLLING, HELD)
    job_time = (job.created_at if open_job else job.finished_at) if job is not None else None
    polling_reason = "Disabled" if gitrepo.disable_polling else "PollFailed" if error else ""
    return [
        Condition(
            "Ready",
            state == READY,
            "" if state == READY else state,
            message(facts),
            facts.applied_at or job_time,
        ),
        Condition(
            "GitPolling",
            not error and not gitrepo.disable_polling,
            polling_reason,
            error,
            remote.health_changed_at or gitrepo.created_at,
        ),
        Condition("Reconciling", reconciling, state if reconciling else "", "", job_time),
        Condition("Stalled", stalled, state if stalled else "", message(facts) if stalled else "", job_time),
        Condition("Accepted", True, "", "", gitrepo.created_at),
    ]


def facts_of(gitrepos: Sequence[GitRepo]) -> dict[int, Facts]:
    """The facts for GitRepos that were read with their remote and wanted_revision, by primary key."""
    keys = [gitrepo.pk for gitrepo in gitrepos]
    newest = SyncJob.objects.filter(gitrepo__in=keys).order_by().values("gitrepo").annotate(newest=Max("pk"))
    jobs = {job.gitrepo_id: job for job in SyncJob.objects.filter(pk__in=newest.values("newest"))}
    states: dict[int, dict[str, int]] = {}
    applied_at: dict[int, datetime] = {}
    counted = Delivery.objects.filter(gitrepo__in=keys).order_by().values_list("gitrepo", "state")
    for key, state, count, latest in counted.annotate(Count("pk"), Max("applied_at")):
        states.setdefault(key, {})[state] = count
        if latest and (key not in applied_at or latest > applied_at[key]):
            applied_at[key] = latest
    errors: dict[int, str] = {}
    troubled = [key for key, found in states.items() if State.FAILED in found or State.HELD in found]
    failing = Delivery.objects.filter(gitrepo__in=troubled, state__in=[State.FAILED, State.HELD]).order_by("-pk")
    for key, cluster, error in failing.values_list("gitrepo", "cluster__name", "last_error"):
        errors[key] = f"{cluster}: {error}"
    return {
        gitrepo.pk: _facts(gitrepo, jobs.get(gitrepo.pk), states.get(gitrepo.pk, {}), errors, applied_at)
        for gitrepo in gitrepos
    }


def _facts(
    gitrepo: GitRepo,
    job: SyncJob | None,
    states: dict[str, int],
    errors: dict[int, str],
    applied_at: dict[int, datetime],
) -> Facts:
    unsettled = (State.WAITING, State.FAILED, State.HELD)
    return Facts(
        gitrepo=gitrepo,
        job=job,
        states=states,
        delivery_error=errors.get(gitrepo.pk, ""),
        applied_at=applied_at.get(gitrepo.pk),
        wanted=gitrepo.wanted_revision,
        settled=gitrepo.wanted_revision is not None and not any(states.get(state) for state in unsettled),
    )


def status_json(facts: Facts) -> dict[str, Any]:
    """The `status` of a GitRepo in REST.

    `commit` is the newest one that all matched clusters have, "" before the first; `observed_commit` the newest seen.
    """
    gitrepo, remote = facts.gitrepo, facts.gitrepo.remote
    return {
        "display_state": display_state(facts),
        "message": message(facts),
        "commit": facts.wanted.commit if facts.wanted is not None and facts.settled else "",
        "wanted_commit": facts.wanted.commit if facts.wanted is not None else "",
        "observed_commit": gitrepo.observed_commit,
        "observed_generation": facts.wanted.generation if facts.wanted is not None else 0,
        "observed_force_sync_generation": gitrepo.handled_force,
        "conditions": [condition.as_json() for condition in conditions(facts)],
        "last_poll_at": remote.last_poll_at,
        "last_success_at": remote.last_success_at,
        "next_poll_at": remote.next_poll_at,
        "poll_lag_seconds": remote.last_lag_seconds,
        "consecutive_failures": remote.consecutive_failures or gitrepo.ref_failures,
        "last_error": polling_error(gitrepo),
        "ready_clusters": f"{facts.ready_clusters}/{facts.wanted_clusters}",
    }


def statuses(gitrepos: Iterable[GitRepo]) -> dict[int, dict[str, Any]]:
    """`status_json` for a page of GitRepos, by primary key."""
    return {key: status_json(facts) for key, facts in facts_of(list(gitrepos)).items()}
