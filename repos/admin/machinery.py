"""What the pipeline writes: to look at, when somebody asks why."""

from django.contrib import admin

from repos.admin.base import SHORT, ReadOnlyAdmin, cut
from repos.models import (
    Adoption,
    Bundle,
    Chore,
    Counter,
    Delivery,
    DeliveryRecord,
    Event,
    Host,
    HostNotBefore,
    Mirror,
    Probe,
    Remote,
    Revision,
    SyncJob,
)


@admin.register(Remote)
class RemoteAdmin(ReadOnlyAdmin):
    list_display = ["shown_url", "credential", "next_poll_at", "last_success_at", "consecutive_failures", "error"]
    list_select_related = ["credential", "host"]
    list_filter = ["insecure_skip_tls_verify"]
    search_fields = ["url"]
    # A repository may have a hundred thousand refs: how many they are says enough here.
    exclude = ["refs", "asked", "recent", "returning"]
    readonly_fields = ["known_refs", "asked_for"]

    @admin.display(description="URL", ordering="url")
    def shown_url(self, remote: Remote) -> str:
        return cut(remote.url)

    @admin.display(description="last error")
    def error(self, remote: Remote) -> str:
        return cut(remote.last_error)

    @admin.display(description="refs known")
    def known_refs(self, remote: Remote) -> int:
        return len(remote.refs)

    @admin.display(description="refs asked for")
    def asked_for(self, remote: Remote) -> str:
        return cut(", ".join(map(str, remote.asked)), 1000)


@admin.register(SyncJob)
class SyncJobAdmin(ReadOnlyAdmin):
    list_display = ["gitrepo", "revision", "state", "failures", "error", "due_at", "created_at", "finished_at"]
    list_select_related = ["gitrepo", "revision"]
    list_filter = ["state"]
    search_fields = ["gitrepo__name", "revision__commit"]
    ordering = ["-pk"]

    @admin.display(description="last error")
    def error(self, job: SyncJob) -> str:
        return cut(job.last_error)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    list_display = [
        "gitrepo",
        "cluster",
        "state",
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

    @admin.display(description="last error")
    def error(self, delivery: Delivery) -> str:
        return cut(delivery.last_error)


@admin.register(DeliveryRecord)
class DeliveryRecordAdmin(ReadOnlyAdmin):
    list_display = ["gitrepo", "revision", "cluster", "outcome", "wanted_at", "ended_at"]
    list_select_related = ["revision__gitrepo", "cluster"]
    list_filter = ["outcome"]
    search_fields = ["revision__commit", "revision__gitrepo__name", "cluster__name"]
    ordering = ["-pk"]

    @admin.display(description="GitRepo")
    def gitrepo(self, record: DeliveryRecord) -> str:
        return record.revision.gitrepo.name


@admin.register(Revision)
class RevisionAdmin(ReadOnlyAdmin):
    list_display = ["gitrepo", "number", "commit", "reason", "outcome", "observed_at", "synced_at"]
    list_select_related = ["gitrepo"]
    list_filter = ["reason", "outcome"]
    search_fields = ["gitrepo__name", "commit"]
    ordering = ["-pk"]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["last_at", "gitrepo", "type", "reason", "shown_message", "count"]
    list_select_related = ["gitrepo"]
    list_filter = ["type", "reason"]
    search_fields = ["gitrepo__name", "message"]

    @admin.display(description="message")
    def shown_message(self, event: Event) -> str:
        return cut(event.message, 200)


@admin.register(Bundle)
class BundleAdmin(ReadOnlyAdmin):
    list_display = ["short", "size_bytes", "files", "created_at", "last_used_at"]
    search_fields = ["sha256"]
    ordering = ["-pk"]

    @admin.display(description="SHA-256")
    def short(self, bundle: Bundle) -> str:
        return bundle.sha256[:SHORT]


@admin.register(Host)
class HostAdmin(ReadOnlyAdmin):
    list_display = ["name", "port", "failures", "failing_since"]
    search_fields = ["name"]


@admin.register(HostNotBefore)
class HostNotBeforeAdmin(ReadOnlyAdmin):
    list_display = ["host", "credential_key", "until"]
    list_select_related = ["host"]


@admin.register(Mirror)
class MirrorAdmin(ReadOnlyAdmin):
    list_display = ["remote", "worker_host", "size_bytes", "last_fetch_at", "last_used_at"]
    list_select_related = ["remote"]
    search_fields = ["remote__url", "worker_host"]


@admin.register(Adoption)
class AdoptionAdmin(ReadOnlyAdmin):
    list_display = ["remote", "due_at", "wanted"]
    list_select_related = ["remote"]
    search_fields = ["remote__url"]


@admin.register(Probe)
class ProbeAdmin(ReadOnlyAdmin):
    list_display = ["kind", "remote", "delivery", "worker_host", "created_at", "ended_at", "reason"]
    list_select_related = ["remote", "delivery__gitrepo", "delivery__cluster"]
    list_filter = ["kind"]
    search_fields = ["remote__url", "delivery__gitrepo__name", "worker_host"]
    # A remote's answer may be a hundred thousand refs.
    exclude = ["answer"]
    ordering = ["-pk"]

    @admin.display(description="error")
    def reason(self, probe: Probe) -> str:
        return cut(probe.error)


@admin.register(Chore)
class ChoreAdmin(ReadOnlyAdmin):
    list_display = ["name", "due_at", "cursor", "rounds"]


@admin.register(Counter)
class CounterAdmin(ReadOnlyAdmin):
    list_display = ["name", "label", "value"]
    search_fields = ["name"]
