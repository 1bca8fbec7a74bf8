"""Clusters and groups of them."""

import json
from typing import Any

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from repos import clusters
from repos.admin.base import LATEST, SENTENCE, SHORT, DoorAdmin, cut, table
from repos.admin.forms import ClusterForm, ClusterGroupForm
from repos.models import Cluster, ClusterGroup, Delivery


@admin.register(Cluster)
class ClusterAdmin(DoorAdmin):
    form = ClusterForm
    empty = "There is no Cluster yet. Add one above, and name it, or its labels, in the targets of a GitRepo."
    list_display = ["name", "shown_labels", "driver", "applied", "behind", "match_due_at"]
    list_filter = ["driver"]
    search_fields = ["name"]
    list_per_page = 50
    machinery_fields = ["match_wanted", "match_due_at", "created_at", "updated_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Cluster]:
        behind = Q(deliveries__state__in=[Delivery.State.WAITING, Delivery.State.FAILED, Delivery.State.HELD])
        rows: QuerySet[Cluster] = super().get_queryset(request)
        return rows.annotate(
            applied_count=Count("deliveries", filter=Q(deliveries__state=Delivery.State.APPLIED)),
            behind_count=Count("deliveries", filter=behind),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:  # noqa: ARG002
        return ["name", "recent_deliveries", *self.machinery_fields] if obj is not None else []

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002
        spec: list[tuple[str | None, dict[str, Any]]] = [(None, {"fields": ["name", "labels", "driver", "settings"]})]
        if obj is None:
            return spec
        return [
            *spec,
            (f"The last {LATEST}", {"fields": ["recent_deliveries"]}),
            ("Machinery", {"fields": self.machinery_fields, "classes": ["collapse"]}),
        ]

    def save(self, spec: dict[str, Any], pk: int | None) -> Cluster:
        return clusters.save_cluster(spec, pk)

    def remove(self, pk: int) -> None:
        clusters.delete_cluster(pk)

    @admin.display(description="labels")
    def shown_labels(self, cluster: Cluster) -> str:
        return cut(json.dumps(cluster.labels, ensure_ascii=False))

    @admin.display(description="applied", ordering="applied_count")
    def applied(self, cluster: Any) -> int:
        return int(cluster.applied_count)

    @admin.display(description="waiting, failed or held", ordering="behind_count")
    def behind(self, cluster: Any) -> int:
        return int(cluster.behind_count)

    @admin.display(description="deliveries")
    def recent_deliveries(self, cluster: Cluster) -> SafeString:
        rows = Delivery.objects.filter(cluster=cluster.pk).select_related("gitrepo", "wanted_revision")
        return table(
            ["GitRepo", "state", "wanted", "applied at", "last error"],
            (
                [
                    d.gitrepo.name,
                    d.state,
                    d.wanted_revision.commit[:SHORT] if d.wanted_revision else "",
                    d.applied_at,
                    cut(d.last_error, SENTENCE),
                ]
                for d in rows.order_by("-wanted_at", "-pk")[:LATEST]
            ),
            "none yet: they are made when a GitRepo's targets match this cluster",
        )


@admin.register(ClusterGroup)
class ClusterGroupAdmin(DoorAdmin):
    form = ClusterGroupForm
    empty = "There is no group yet. Add one above with a selector of labels, and name it in the targets of a GitRepo."
    list_display = ["name", "shown_selector", "updated_at"]
    search_fields = ["name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:  # noqa: ARG002
        return ["name"] if obj is not None else []

    @admin.display(description="selector")
    def shown_selector(self, group: ClusterGroup) -> str:
        return cut(json.dumps(group.selector, ensure_ascii=False))

    def save(self, spec: dict[str, Any], pk: int | None) -> ClusterGroup:
        return clusters.save_group(spec, pk)

    def remove(self, pk: int) -> None:
        clusters.delete_group(pk)
