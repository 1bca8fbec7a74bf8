"""What the pipeline writes: to look at, when somebody asks why."""

from datetime import datetime
from typing import Any, ClassVar

from django.conf import settings
from django.contrib import admin
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.safestring import SafeString

from repos import breaker, leases, quarantine
from repos.admin.base import (
    LATEST,
    REFS,
    REMOTES_REFS,
    SENTENCE,
    SHORT,
    LeasedAdmin,
    ReadOnlyAdmin,
    RulesFilter,
    cut,
    table,
)
from repos.models import (
    Adoption,
    Bundle,
    Chore,
    Counter,
    Credential,
    Delivery,
    DeliveryRecord,
    Event,
    Host,
    HostNotBefore,
    Mirror,
    Remote,
    Revision,
    SyncJob,
)

# What a remote's list says of its health, the worst first.
QUARANTINED, SUSPECT, FAILING, WELL = "quarantined", "on probation", "failing", "well"


class HealthFilter(RulesFilter):
    title = "health"
    parameter_name = "health"

    def rules(self) -> dict[str, Q]:
        suspect, failing = Q(crashes__gte=leases.ON_PROBATION), Q(consecutive_failures__gt=0)
        quarantined = Q(crashes__gte=quarantine.QUARANTINED)
        return {
            QUARANTINED: quarantined,
            SUSPECT: suspect & ~quarantined,
            FAILING: failing & ~suspect,
            WELL: ~failing & ~suspect,
        }


def health_of(remote: Remote) -> str:
    """The worst that is true of it, as HealthFilter says it in SQL."""
    if quarantine.is_quarantined(remote):
        return QUARANTINED
    if remote.crashes >= leases.ON_PROBATION:
        return SUSPECT
    return FAILING if remote.consecutive_failures else WELL


@admin.register(Remote)
class RemoteAdmin(LeasedAdmin):
    empty = "No remote is polled yet: each GitRepo that is registered brings its own, or shares one."
    list_display = [
        "shown_url",
        "health",
        "consecutive_failures",
        "error",
        "next_poll_at",
        "last_success_at",
        "credential",
    ]
    list_select_related = ["credential"]
    list_filter = [HealthFilter, "insecure_skip_tls_verify"]
    search_fields = ["url"]
    ordering = ["-pk"]
    heavy = (*REFS, "ca_bundle")
    # How many refs there are says enough here.
    exclude = list(REFS)
    readonly_fields: ClassVar[tuple[str, ...]] = ("health", "known_refs", "asked_for", *LeasedAdmin.readonly_fields)

    @admin.display(description="URL", ordering="url")
    def shown_url(self, remote: Remote) -> str:
        return cut(remote.url)

    @admin.display(description="health")
    def health(self, remote: Remote) -> str:
        return health_of(remote)

    @admin.display(description="last error")
    def error(self, remote: Remote) -> str:
        return cut(remote.last_error)

    @admin.display(description="refs known")
    def known_refs(self, remote: Remote) -> int:
        return len(remote.refs)

    @admin.display(description="refs asked for")
    def asked_for(self, remote: Remote) -> str:
        return cut(", ".join(map(str, remote.asked)), 1000)


class OfRemoteAdmin(LeasedAdmin):
    """Rows that belong to a remote, whose URL can be longer than a screen is wide."""

    list_select_related = ("remote",)
    heavy = REMOTES_REFS

    @admin.display(description="remote", ordering="remote__url")
    def shown_remote(self, row: Any) -> str:
        return cut(row.remote.url) if row.remote else ""


@admin.register(SyncJob)
class SyncJobAdmin(LeasedAdmin):
    empty = "No job yet: each new commit, edit and forced sync of a GitRepo makes one."
    list_display = [
        "gitrepo",
        "number",
        "commit",
        "shown_state",
        "failures",
        "error",
        "due_at",
        "created_at",
        "finished_at",
    ]
    list_select_related = ["gitrepo", "revision"]
    list_filter = ["state"]
    search_fields = ["gitrepo__name", "revision__commit"]
    ordering = ["-pk"]

    @admin.display(description="revision", ordering="revision__number")
    def number(self, job: SyncJob) -> int:
        return job.revision.number

    @admin.display(description="commit")
    def commit(self, job: SyncJob) -> str:
        return job.revision.commit[:SHORT]

    @admin.display(description="state", ordering="state")
    def shown_state(self, job: SyncJob) -> str:
        return job.state

    @admin.display(description="last error")
    def error(self, job: SyncJob) -> str:
        return cut(job.last_error)


@admin.register(Delivery)
class DeliveryAdmin(LeasedAdmin):
    empty = "No delivery yet: they are made when a commit is synced and a target of its GitRepo matches a cluster."
    list_display = [
        "gitrepo",
        "cluster",
        "shown_state",
        "removal",
        "sequence",
        "applied_sequence",
        "due_at",
        "failures",
        "error",
    ]
    list_select_related = ["gitrepo", "cluster"]
    list_filter = ["state", "removal"]
    search_fields = ["gitrepo__name", "cluster__name"]
    ordering = ["-pk"]

    @admin.display(description="state", ordering="state")
    def shown_state(self, delivery: Delivery) -> str:
        return delivery.state

    @admin.display(description="last error")
    def error(self, delivery: Delivery) -> str:
        return cut(delivery.last_error)


@admin.register(DeliveryRecord)
class DeliveryRecordAdmin(ReadOnlyAdmin):
    empty = "The ledger is empty: it has a line for each revision at each cluster that a GitRepo's targets match."
    list_display = ["gitrepo", "number", "commit", "cluster", "shown_outcome", "wanted_at", "ended_at", "reason"]
    list_select_related = ["revision__gitrepo", "cluster"]
    list_filter = ["outcome"]
    search_fields = ["revision__commit", "revision__gitrepo__name", "cluster__name"]
    ordering = ["-pk"]

    @admin.display(description="GitRepo")
    def gitrepo(self, record: DeliveryRecord) -> str:
        return record.revision.gitrepo.name

    @admin.display(description="revision", ordering="revision__number")
    def number(self, record: DeliveryRecord) -> int:
        return record.revision.number

    @admin.display(description="commit")
    def commit(self, record: DeliveryRecord) -> str:
        return record.revision.commit[:SHORT]

    @admin.display(description="outcome", ordering="outcome")
    def shown_outcome(self, record: DeliveryRecord) -> str:
        return record.outcome

    @admin.display(description="error")
    def reason(self, record: DeliveryRecord) -> str:
        return cut(record.error)


@admin.register(Revision)
class RevisionAdmin(ReadOnlyAdmin):
    empty = "No revision yet: a GitRepo's first one is made when its first poll has found the commit that it follows."
    list_display = ["gitrepo", "number", "short", "shown_reason", "shown_outcome", "observed_at", "synced_at"]
    list_select_related = ["gitrepo"]
    list_filter = ["reason", "outcome"]
    search_fields = ["gitrepo__name", "commit"]
    ordering = ["-pk"]

    @admin.display(description="commit", ordering="commit")
    def short(self, revision: Revision) -> str:
        return revision.commit[:SHORT]

    @admin.display(description="reason", ordering="reason")
    def shown_reason(self, revision: Revision) -> str:
        return revision.reason

    @admin.display(description="outcome", ordering="outcome")
    def shown_outcome(self, revision: Revision) -> str:
        return revision.outcome or "open"


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    empty = "Nothing has happened yet: registrations, edits and errors are told here."
    list_display = ["last_at", "about", "type", "reason", "shown_message", "count"]
    list_select_related = ["gitrepo", "remote"]
    list_filter = ["type", "reason"]
    search_fields = ["gitrepo__name", "remote__url", "message"]
    heavy = REMOTES_REFS

    @admin.display(description="about")
    def about(self, event: Event) -> str:
        """The GitRepo, the remote whose GitRepos it concerns, or neither: the installation."""
        if event.gitrepo is not None:
            return event.gitrepo.name
        return cut(event.remote.url) if event.remote is not None else "fleetsync"

    @admin.display(description="message")
    def shown_message(self, event: Event) -> str:
        return cut(event.message, SENTENCE)


@admin.register(Bundle)
class BundleAdmin(ReadOnlyAdmin):
    empty = "No bundle yet: the first commit that is synced makes one."
    list_display = ["short", "size", "files", "created_at", "last_used_at"]
    search_fields = ["sha256"]
    ordering = ["-pk"]

    @admin.display(description="SHA-256")
    def short(self, bundle: Bundle) -> str:
        return bundle.sha256[:SHORT]

    @admin.display(description="size", ordering="size_bytes")
    def size(self, bundle: Bundle) -> str:
        return filesizeformat(bundle.size_bytes)


class BreakerFilter(RulesFilter):
    title = "breaker"
    parameter_name = "breaker"

    def rules(self) -> dict[str, Q]:
        return {"open": breaker.is_open(), "closed": ~breaker.is_open()}


@admin.register(Host)
class HostAdmin(ReadOnlyAdmin):
    empty = "No host is asked yet: the URL of each GitRepo that is registered names one."
    list_display = ["shown_name", "port", "breaker", "failures", "failing_since", "asked_to_wait"]
    list_filter = [BreakerFilter]
    search_fields = ["name"]
    # Those that need somebody first.
    ordering = ["-failures", "name", "port"]
    readonly_fields = ("breaker", "waits")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Host] = super().get_queryset(request)
        latest = HostNotBefore.objects.filter(host=OuterRef("pk")).order_by("-until")
        return rows.annotate(latest_until=Subquery(latest.values("until")[:1]))

    @admin.display(description="host", ordering="name")
    def shown_name(self, host: Host) -> str:
        return cut(host.name, 40) or "this machine"

    @admin.display(description="breaker")
    def breaker(self, host: Host) -> str:
        return "open" if host.failures >= settings.GIT_HOST_BREAKER else "closed"

    @admin.display(description="not before", ordering="latest_until")
    def asked_to_wait(self, host: Any) -> datetime | None:
        """The last instant that it named, whichever the credential; one that is over is history."""
        until: datetime | None = host.latest_until
        return until

    @admin.display(description="not before")
    def waits(self, host: Host) -> SafeString:
        rows = with_credential_name(HostNotBefore.objects.filter(host=host)).order_by("-until")[:LATEST]
        said = "it never asked to wait"
        return table(["credential", "until"], ([credential_of(row), row.until] for row in rows), said)


def with_credential_name(rows: QuerySet[HostNotBefore]) -> QuerySet[Any]:
    names = Credential.objects.filter(pk=OuterRef("credential_key")).values("name")
    return rows.annotate(credential_name=Subquery(names[:1]))


def credential_of(row: Any) -> str:
    """The name for a row of `with_credential_name`."""
    if not row.credential_key:
        return "none"
    return row.credential_name or "a deleted one"


@admin.register(HostNotBefore)
class HostNotBeforeAdmin(ReadOnlyAdmin):
    empty = "No host has asked to be left alone (429, Retry-After)."
    list_display = ["shown_host", "credential", "until"]
    list_select_related = ["host"]
    ordering = ["-until"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_credential_name(super().get_queryset(request))

    @admin.display(description="host", ordering="host__name")
    def shown_host(self, row: HostNotBefore) -> str:
        return cut(str(row.host), 60)

    @admin.display(description="credential")
    def credential(self, row: Any) -> str:
        return credential_of(row)


@admin.register(Mirror)
class MirrorAdmin(OfRemoteAdmin):
    empty = "No mirror yet: a worker's machine makes one when it first fetches from a remote."
    list_display = ["shown_remote", "machine", "size", "last_fetch_at", "last_used_at"]
    search_fields = ["remote__url", "worker_host"]
    ordering = ["-pk"]

    @admin.display(description="worker host", ordering="worker_host")
    def machine(self, mirror: Mirror) -> str:
        return cut(mirror.worker_host, 60)

    @admin.display(description="size", ordering="size_bytes")
    def size(self, mirror: Mirror) -> str:
        return filesizeformat(mirror.size_bytes)


@admin.register(Adoption)
class AdoptionAdmin(OfRemoteAdmin):
    empty = "No adoption yet: each remote has one from its first poll on."
    list_display = ["shown_remote", "due_at", "wanted", "failures"]
    search_fields = ["remote__url"]
    ordering = ["-pk"]


@admin.register(Chore)
class ChoreAdmin(LeasedAdmin):
    empty = "No chore yet: the workers make them when they start."
    list_display = ["name", "due_at", "cursor", "rounds", "at_work"]
    ordering = ["name"]


@admin.register(Counter)
class CounterAdmin(ReadOnlyAdmin):
    empty = "Nothing is counted yet: /metrics shows these numbers once the workers have something to count."
    list_display = ["name", "label", "value"]
    search_fields = ["name"]
    ordering = ["name", "label"]
