"""GitRepos: the list that says who is behind, and the page that says why."""

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from repos import registration
from repos.admin.base import LATEST, REMOTES_REFS, SENTENCE, SHORT, DoorAdmin, cut, moment, sentences, table
from repos.admin.forms import GitRepoForm
from repos.display_states import with_display_state
from repos.events import events_of
from repos.models import DeliveryRecord, GitRepo
from repos.status import DISPLAY_STATES, statuses


class DisplayStateFilter(admin.SimpleListFilter):
    title = "display state"
    parameter_name = "display_state"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in DISPLAY_STATES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        return with_display_state(queryset).filter(shown_state=self.value()) if self.value() else queryset


class PageWithStatus(ChangeList):
    """Gives every GitRepo of the page its status, read for all of them at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Any] = list(self.result_list)
        found = statuses(page)
        for gitrepo in page:
            gitrepo.shown_status = found[gitrepo.pk]
        self.result_list = page


def status_of(gitrepo: GitRepo | None) -> dict[str, Any]:
    """The status, {} for a form that is not saved yet and for one that the history shows of a deleted GitRepo."""
    if gitrepo is None or gitrepo.pk is None:
        return {}
    if not hasattr(gitrepo, "shown_status"):
        row = GitRepo.objects.select_related("remote", "wanted_revision").filter(pk=gitrepo.pk).first()
        gitrepo.shown_status = statuses([row])[row.pk] if row is not None else {}  # type: ignore[attr-defined]
    found: dict[str, Any] = gitrepo.shown_status  # type: ignore[attr-defined]
    return found


@admin.register(GitRepo)
class GitRepoAdmin(DoorAdmin):
    form = GitRepoForm
    empty = (
        "There is no GitRepo yet. Add one above, or run manage.py import_gitrepos FILE with a Fleet manifest; "
        "it is polled within seconds."
    )
    list_display = [
        # What changes first: on a narrow screen the rest is a scroll away.
        "name",
        "display_state",
        "ready_clusters",
        "commit_short",
        "next_poll",
        "lag",
        "last_error",
        "paused",
        "shown_url",
    ]
    list_filter = [DisplayStateFilter, "paused", "disable_polling", "credential"]
    list_select_related = ["remote", "wanted_revision", "credential"]
    list_per_page = 50
    show_full_result_count = False
    search_fields = ["name", "url", "branch", "tag", "observed_commit"]
    actions = ["sync_now", "pause", "resume", "approve"]
    autocomplete_fields = ["credential"]
    status_fields = [
        "display_state",
        "shown_message",
        "shown_conditions",
        "commit_full",
        "observed_commit",
        "ready_clusters",
        "next_poll",
        "last_poll",
        "last_success",
        "lag",
        "last_error",
    ]
    recent_fields = ["recent_revisions", "recent_jobs", "recent_deliveries", "recent_events"]
    machinery_fields = [
        "uuid",
        "generation",
        "force_sync_generation",
        "remote",
        "interval_seconds",
        "requested",
        "handled",
        "handled_force",
        "adopted_remote",
        "adopted_change",
        "ref_failures",
        "ref_error",
        "observed_at",
        "latest_revision",
        "wanted_revision",
        "created_at",
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[GitRepo]:
        rows: QuerySet[GitRepo] = super().get_queryset(request)
        return rows.filter(deleted_at__isnull=True).defer(*REMOTES_REFS)

    def get_changelist(self, *_: Any, **__: Any) -> type[ChangeList]:
        return PageWithStatus

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:  # noqa: ARG002
        fields = [*self.status_fields, *self.recent_fields, *self.machinery_fields]
        return ["name", *fields] if obj is not None else fields

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002
        spec: list[tuple[str | None, dict[str, Any]]] = [
            (None, {"fields": ["name", "url", "branch", "tag", "semver", "commit", "paths", "targets"]}),
            ("Polling", {"fields": ["polling_interval", "disable_polling", "paused"]}),
            ("Access", {"fields": ["credential", "ca_bundle", "insecure_skip_tls_verify"]}),
            ("Delivery", {"fields": ["correct_drift", "keep_resources"]}),
        ]
        if obj is None:
            return spec
        return [
            *spec,
            ("Status", {"fields": self.status_fields}),
            (f"The last {LATEST}", {"fields": self.recent_fields}),
            ("Machinery", {"fields": self.machinery_fields, "classes": ["collapse"]}),
        ]

    def save(self, spec: dict[str, Any], pk: int | None) -> GitRepo:
        return registration.register(spec) if pk is None else registration.edit(pk, spec)

    def remove(self, pk: int) -> None:
        registration.delete(pk)

    # -- actions ------------------------------------------------------------------------------------------------

    def _each(self, request: HttpRequest, rows: Iterable[GitRepo], do: Callable[[int], object], done: str) -> None:
        """Do it for each, and say how it went; what one refuses does not stop the others."""
        count = 0
        for gitrepo in rows:
            try:
                do(gitrepo.pk)
                count += 1
            except (ValidationError, GitRepo.DoesNotExist) as error:
                said = sentences(error) if isinstance(error, ValidationError) else ["It was deleted meanwhile."]
                self.message_user(request, f"{gitrepo.name}: {' '.join(said)}", messages.ERROR)
        if count:
            self.message_user(request, f"{count} {done}.", messages.SUCCESS)

    @admin.action(description="Sync now", permissions=["change"])
    def sync_now(self, request: HttpRequest, queryset: QuerySet[GitRepo]) -> None:
        self._each(request, queryset, registration.force, "will sync the newest commit")

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[GitRepo]) -> None:
        self._each(request, queryset, lambda pk: registration.edit(pk, {"paused": True}), "paused")

    @admin.action(description="Resume", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[GitRepo]) -> None:
        self._each(request, queryset, lambda pk: registration.edit(pk, {"paused": False}), "resumed")

    @admin.action(description="Approve held deliveries", permissions=["change"])
    def approve(self, request: HttpRequest, queryset: QuerySet[GitRepo]) -> None:
        self._each(request, queryset, registration.approve, "approved, as wanted now")

    # -- columns ------------------------------------------------------------------------------------------------

    @admin.display(description="URL", ordering="url")
    def shown_url(self, gitrepo: GitRepo) -> str:
        return cut(gitrepo.url)

    @admin.display(description="display state")
    def display_state(self, gitrepo: GitRepo) -> str:
        return str(status_of(gitrepo).get("display_state", ""))

    @admin.display(description="commit")
    def commit_short(self, gitrepo: GitRepo) -> str:
        return str(status_of(gitrepo).get("commit", ""))[:SHORT]

    @admin.display(description="commit everywhere")
    def commit_full(self, gitrepo: GitRepo) -> str:
        return str(status_of(gitrepo).get("commit", ""))

    @admin.display(description="ready clusters")
    def ready_clusters(self, gitrepo: GitRepo) -> str:
        return str(status_of(gitrepo).get("ready_clusters", ""))

    @admin.display(description="next poll", ordering="remote__next_poll_at")
    def next_poll(self, gitrepo: GitRepo) -> str:
        return moment(status_of(gitrepo).get("next_poll_at"))

    @admin.display(description="last poll")
    def last_poll(self, gitrepo: GitRepo) -> str:
        return moment(status_of(gitrepo).get("last_poll_at"))

    @admin.display(description="last success")
    def last_success(self, gitrepo: GitRepo) -> str:
        return moment(status_of(gitrepo).get("last_success_at"))

    @admin.display(description="lag", ordering="remote__last_lag_seconds")
    def lag(self, gitrepo: GitRepo) -> str:
        seconds = status_of(gitrepo).get("poll_lag_seconds")
        return "" if seconds is None else f"{seconds:.1f} s"

    @admin.display(description="last error")
    def last_error(self, gitrepo: GitRepo) -> str:
        return cut(str(status_of(gitrepo).get("last_error", "")))

    @admin.display(description="message")
    def shown_message(self, gitrepo: GitRepo) -> str:
        return str(status_of(gitrepo).get("message", ""))

    @admin.display(description="conditions")
    def shown_conditions(self, gitrepo: GitRepo) -> SafeString:
        names = ("type", "status", "reason", "message", "last_transition_time")
        rows = status_of(gitrepo).get("conditions", [])
        return table(["type", "status", "reason", "message", "since"], ([row[name] for name in names] for row in rows))

    # -- the last rows ------------------------------------------------------------------------------------------

    @admin.display(description="revisions")
    def recent_revisions(self, gitrepo: GitRepo) -> SafeString:
        rows = list(gitrepo.revisions.prefetch_related("records").order_by("-number")[:LATEST])
        return table(
            ["revision", "commit", "reason", "outcome", "pushed", "observed", "synced", "clusters"],
            (
                [
                    r.number,
                    r.commit,
                    r.reason,
                    r.outcome or "open",
                    r.pushed_at,
                    r.observed_at,
                    r.synced_at,
                    outcomes(r),
                ]
                for r in rows
            ),
        )

    @admin.display(description="sync jobs")
    def recent_jobs(self, gitrepo: GitRepo) -> SafeString:
        rows = gitrepo.jobs.select_related("revision").order_by("-pk")[:LATEST]
        return table(
            ["revision", "commit", "state", "failures", "last error", "created", "finished"],
            (
                [
                    j.revision.number,
                    j.revision.commit[:SHORT],
                    j.state,
                    j.failures,
                    j.last_error,
                    j.created_at,
                    j.finished_at,
                ]
                for j in rows
            ),
        )

    @admin.display(description="deliveries")
    def recent_deliveries(self, gitrepo: GitRepo) -> SafeString:
        rows = gitrepo.deliveries.select_related("cluster", "wanted_revision", "applied_revision").order_by(
            "-wanted_at", "-pk"
        )
        return table(
            ["cluster", "state", "wanted", "applied", "since", "last error"],
            (
                [
                    d.cluster.name,
                    d.state,
                    d.wanted_revision.commit[:SHORT] if d.wanted_revision else "",
                    d.applied_revision.commit[:SHORT] if d.applied_revision else "",
                    d.applied_at,
                    cut(d.last_error, SENTENCE),
                ]
                for d in rows[:LATEST]
            ),
            "none yet: they are made when a commit is synced and a target matches a cluster",
        )

    @admin.display(description="events")
    def recent_events(self, gitrepo: GitRepo) -> SafeString:
        rows = events_of(gitrepo)[:LATEST]
        return table(
            ["type", "reason", "message", "count", "last"],
            ([e.type, e.reason, cut(e.message, SENTENCE), e.count, e.last_at] for e in rows),
        )


def outcomes(revision: Any) -> str:
    """How many clusters are at each outcome, as in `2 delivered, 1 pending`."""
    counts: dict[str, int] = {}
    for record in revision.records.all():
        counts[record.outcome] = counts.get(record.outcome, 0) + 1
    return ", ".join(f"{counts[o]} {o}" for o in DeliveryRecord.Outcome.values if o in counts)
