"""The deep examination: what remotes, targets and machines say themselves, beside what the database says."""

import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from django.conf import settings

from repos.doctor import facts, probing
from repos.doctor.compare import found_in, probed_head, recorded_in, target_fault
from repos.doctor.examination import asked
from repos.doctor.finding import WARNING, Finding, Report, report_of
from repos.doctor.newest import Follower, by_remote, followers
from repos.doctor.probing import Progress
from repos.doctor.snapshot import snapshot
from repos.leases import database_now
from repos.models import Adoption, Probe, Remote
from repos.remotes import patience
from repos.statements import in_pages

Kind = Probe.Kind
LOOK_SECONDS = 0.5
# Until the second look at a target that differs.
SECOND_LOOK_SECONDS = 1.0

MISSED = "sync the GitRepo (POST …/sync/); report it as a fault of fleetsync, with the logs of the workers for the queue poll"
DELIVER_ANEW = "sync the GitRepo (POST …/sync/): it is delivered anew; and see who else writes to the target"
TIDY = "when no worker runs on that machine, remove it; report it as a fault of fleetsync"
NOBODY = "see that workers for the queue {queue} run, and give a longer --timeout"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A GitRepo whose remote had `head` at `asked_at`, while its newest revision was number `number` of another commit."""

    follower: Follower
    remote: int
    url: str
    head: str
    asked_at: datetime
    number: int | None


@dataclass(frozen=True, slots=True)
class RemoteNow:
    """Whether a remote's next poll will tell, or has told, what a probe saw."""

    last_poll_at: datetime | None
    next_poll_at: datetime | None
    # It fails, or its host does or asked for patience: that is told by itself.
    excused: bool
    # An answer is to be adopted, or waits for a second poll's word.
    settling: bool


def look_again(suspect: Suspect, follower: Follower | None, remote: RemoteNow | None) -> str:
    """What has become of a suspect: "cleared", "wait", or "ask" its remote once more. Pure.

    A poll that began after the probe saw what the probe saw, or something newer. If that is adopted, the newest revision
    is another one now; if nothing is to be adopted and it is still the same, a commit was missed, or came and went.
    """
    if follower is None or remote is None or remote.excused:
        return "cleared"
    if follower.newest_commit == suspect.head or follower.newest_number != suspect.number:
        return "cleared"
    polled = remote.last_poll_at is not None and remote.last_poll_at > suspect.asked_at
    return "ask" if polled and not remote.settling else "wait"


class Examination:
    """One run of the doctor that asks workers, for at most `timeout_seconds`, and the database in the end."""

    def __init__(self, timeout_seconds: float, progress: Progress) -> None:
        self.until = time.monotonic() + timeout_seconds
        self.progress = progress
        self.findings: list[Finding] = []

    def run(self) -> Report:
        first = uuid.uuid4()
        probes = probing.remote_probes() + probing.target_probes() + probing.machine_probes(database_now())
        self.progress(f"{probing.make(first, probes)} questions for workers")
        probing.wait(first, self.until, self.progress)
        self.findings += [*self.unanswered(first), *not_asked(first), *debris(first)]
        self.targets(first)
        self.remotes(first)
        self.progress("looking at the database")
        with snapshot():
            now = database_now()
            self.findings += asked(now)
        return report_of([*self.findings, *facts.broker(now)], now, deep=True)

    # -- targets ---------------------------------------------------------------------------------------------------

    def targets(self, examination: uuid.UUID) -> None:
        """Those that differ, or changed while they were asked, are asked twice."""
        first = list(differing(examination))
        if not first or self.left() <= SECOND_LOOK_SECONDS:
            self.findings += [fault for _, fault in first if fault is not None]
            return
        doubtful = [pk for pk, _ in first]
        self.progress(f"{len(doubtful)} targets are asked once more")
        time.sleep(SECOND_LOOK_SECONDS)
        again = uuid.uuid4()
        probing.make(again, probing.target_probes(doubtful))
        probing.wait(again, self.until, self.progress)
        self.findings += [*self.unanswered(again), *(fault for _, fault in differing(again) if fault is not None)]

    # -- remotes ---------------------------------------------------------------------------------------------------

    def remotes(self, examination: uuid.UUID) -> None:
        suspects = list(suspects_of(examination))
        if suspects:
            self.progress(f"{len(suspects)} GitRepos are behind their remotes: waiting for the next polls")
        while suspects and self.left() > 0:
            became = self._became(suspects)
            suspects = became["wait"]
            if became["ask"]:
                suspects += self._ask_again(became["ask"])
            elif suspects:
                time.sleep(min(LOOK_SECONDS, max(0.0, self.left())))
        if suspects:
            remotes = remotes_now({suspect.remote for suspect in suspects}, database_now())
            self.findings += [behind(suspect, remotes.get(suspect.remote)) for suspect in suspects]

    def _ask_again(self, suspects: list[Suspect]) -> list[Suspect]:
        """Tell of those whose remote says the same again, with nothing adopted meanwhile. Those whose remote has moved on,
        or did not answer in time, are suspects still.
        """
        again = uuid.uuid4()
        probing.make(again, probing.remote_probes({suspect.remote for suspect in suspects}))
        if not probing.wait(again, self.until, self.progress):
            return suspects
        answers = {probe.remote_id: probe for probe in Probe.objects.filter(examination=again, error="")}
        became = self._became([suspect for suspect in suspects if suspect.remote in answers])
        still = became["wait"]
        for suspect in became["ask"]:
            probe = answers[suspect.remote]
            head = probed_head(suspect.follower, probe.answer)
            if head == suspect.head:
                self.findings.append(missed(suspect))
            elif head is not None and head != suspect.follower.newest_commit and probe.ended_at is not None:
                still.append(replace(suspect, head=head, asked_at=probe.ended_at))
        return still

    def _became(self, suspects: list[Suspect]) -> dict[str, list[Suspect]]:
        """The suspects by what has become of them (look_again)."""
        keys = {suspect.remote for suspect in suspects}
        with snapshot():
            now = database_now()
            rows: dict[int, Follower] = {}
            for page in in_pages(sorted(keys)):
                groups = by_remote(followers().filter(remote__in=page)).values()
                rows |= {row.pk: row for group in groups for row in group}
            remotes = remotes_now(keys, now)
        became: dict[str, list[Suspect]] = {"cleared": [], "wait": [], "ask": []}
        for suspect in suspects:
            became[look_again(suspect, rows.get(suspect.follower.pk), remotes.get(suspect.remote))].append(suspect)
        return became

    def left(self) -> float:
        return self.until - time.monotonic()

    def unanswered(self, examination: uuid.UUID) -> Iterator[Finding]:
        open_ones = Probe.objects.filter(examination=examination, due_at__isnull=False)
        counts = Counter(open_ones.values_list("kind", "worker_host"))
        for (kind, host), count in sorted(counts.items()):
            queue = probing.QUEUES[Kind(kind)]
            where = f" on {host}" if host else ""
            yield Finding(
                "unanswered",
                f"queue {queue}{where}",
                f"{count} questions of the kind {kind} were not answered in time",
                NOBODY.format(queue=queue),
                count=count,
            )


def remotes_now(keys: Collection[int], now: datetime) -> dict[int, RemoteNow]:
    found: dict[int, RemoteNow] = {}
    for page in in_pages(sorted(keys)):
        found |= _page_now(page, now)
    return found


def _page_now(keys: Collection[int], now: datetime) -> dict[int, RemoteNow]:
    rows = list(Remote.objects.filter(pk__in=keys).select_related("host").defer("refs", "recent"))
    patient = patience({row.host_id for row in rows}, now)
    settled = set(Adoption.objects.filter(remote__in=keys, due_at__isnull=True).values_list("remote", flat=True))
    return {
        row.pk: RemoteNow(
            row.last_poll_at,
            row.next_poll_at,
            excused=bool(row.consecutive_failures)
            or row.host.failures >= settings.GIT_HOST_BREAKER
            or (row.host_id, row.credential_id or 0) in patient,
            settling=bool(row.returning) or row.pk not in settled,
        )
        for row in rows
    }


def suspects_of(examination: uuid.UUID) -> Iterator[Suspect]:
    """GitRepos whose newest revision is not what their remote just said."""
    probes = Probe.objects.filter(examination=examination, kind=Kind.REMOTE, due_at__isnull=True, error="")
    following = by_remote(followers().filter(remote__in=probes.values("remote")))
    rows = probes.order_by("pk").values_list("remote", "remote__url", "answer", "ended_at")
    for remote, url, answer, ended_at in rows.iterator():
        for follower in following.get(remote, ()):
            head = probed_head(follower, answer)
            if head is not None and head != follower.newest_commit and ended_at is not None:
                yield Suspect(follower, remote, url, head, ended_at, follower.newest_number)


def missed(suspect: Suspect) -> Finding:
    message = (
        f"{suspect.url} has had {suspect.head[:12]} since {suspect.asked_at:%H:%M:%S} or longer, it was polled since, and "
        f"the newest revision is {(suspect.follower.newest_commit or 'none')[:12]}"
    )
    return Finding("missed", f"gitrepo {suspect.follower.name}", message, MISSED)


def behind(suspect: Suspect, remote: RemoteNow | None) -> Finding:
    when = f"{remote.next_poll_at:%H:%M:%S}" if remote is not None and remote.next_poll_at is not None else "not set"
    message = (
        f"{suspect.url} has {suspect.head[:12]}, which is not the newest revision yet; the next poll is at {when} UTC"
    )
    advice = "nothing, if it is gone after that poll; a longer --timeout waits for it"
    return Finding("behind", f"gitrepo {suspect.follower.name}", message, advice, WARNING)


def differing(examination: uuid.UUID) -> Iterator[tuple[int, Finding | None]]:
    """The deliveries whose target is not as recorded, with the finding; without one if they moved while being asked."""
    rows = Probe.objects.filter(examination=examination, kind=Kind.TARGET, due_at__isnull=True, error="").order_by("pk")
    columns = ("delivery", "delivery__gitrepo__name", "delivery__cluster__name", "answer")
    for pk, name, cluster, answer in rows.values_list(*columns).iterator():
        if pk is None or answer.get("gone"):
            continue
        if answer["moved"]:
            yield pk, None
        elif fault := target_fault(recorded_in(answer), found_in(answer)):
            kind, message = fault
            yield pk, Finding(kind, f"delivery of {name} at {cluster}", message, DELIVER_ANEW)


def not_asked(examination: uuid.UUID) -> Iterator[Finding]:
    rows = Probe.objects.filter(examination=examination, due_at__isnull=True).exclude(error="").order_by("pk")
    columns = ("kind", "remote__url", "delivery__gitrepo__name", "delivery__cluster__name", "worker_host", "error")
    for kind, url, name, cluster, host, error in rows.values_list(*columns):
        subject = {
            Kind.REMOTE: f"remote {url}",
            Kind.TARGET: f"delivery of {name} at {cluster}",
            Kind.MACHINE: f"machine {host}",
        }[Kind(kind)]
        yield Finding("not-asked", subject, error, "do what the message says, then ask again", WARNING)


def debris(examination: uuid.UUID) -> Iterator[Finding]:
    rows = Probe.objects.filter(examination=examination, kind=Kind.MACHINE, due_at__isnull=True).order_by("worker_host")
    for host, answer in rows.values_list("worker_host", "answer"):
        for thing in answer.get("debris", ()):
            yield Finding("debris", f"machine {host}", thing, TIDY)
