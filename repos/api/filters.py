"""What lists can be narrowed to and ordered by, in the database."""

from typing import Any

from django.db.models import Q, QuerySet
from django_filters import rest_framework as filters
from rest_framework.pagination import PageNumberPagination

from repos.display_states import with_display_state
from repos.models import Cluster, ClusterGroup, Credential, Delivery, GitRepo
from repos.status import DISPLAY_STATES

LONGEST = 2048


class Pages(PageNumberPagination):
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 500


class RevisionPages(Pages):
    """Each revision brings a line for each of its clusters."""

    max_page_size = 100


class GitRepoFilter(filters.FilterSet):
    name = filters.CharFilter(lookup_expr="icontains", label="The name contains this.", max_length=LONGEST)
    url = filters.CharFilter(lookup_expr="icontains", label="The URL contains this.", max_length=LONGEST)
    credential = filters.CharFilter(field_name="credential__name", label="The credential's name.", max_length=LONGEST)
    paused = filters.BooleanFilter()
    cluster = filters.CharFilter(
        method="at_cluster",
        label="Something is delivered, or to be, to the cluster of this name.",
        max_length=LONGEST,
    )
    display_state = filters.ChoiceFilter(
        method="in_state", choices=[(state, state) for state in DISPLAY_STATES], label="The display state."
    )
    ordering = filters.OrderingFilter(
        fields=[
            ("name", "name"),
            ("created_at", "created_at"),
            ("remote__next_poll_at", "next_poll_at"),
            ("remote__last_success_at", "last_success_at"),
            ("remote__consecutive_failures", "consecutive_failures"),
        ]
    )

    class Meta:
        model = GitRepo
        fields: list[str] = []

    def at_cluster(self, rows: QuerySet[GitRepo], _: str, value: str) -> QuerySet[GitRepo]:
        there = Delivery.objects.filter(cluster__name=value).exclude(state=Delivery.State.REMOVED)
        return rows.filter(pk__in=there.values("gitrepo"))

    def in_state(self, rows: QuerySet[GitRepo], _: str, value: str) -> QuerySet[GitRepo]:
        return with_display_state(rows).filter(shown_state=value)

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        # Pages need an order without ties.
        rows = super().filter_queryset(queryset)
        return rows.order_by(*rows.query.order_by, "pk") if rows.query.order_by else rows


class NameFilter(filters.FilterSet):
    name = filters.CharFilter(lookup_expr="icontains", label="The name contains this.", max_length=LONGEST)


class ClusterFilter(NameFilter):
    driver = filters.CharFilter(max_length=LONGEST)
    delivery_state = filters.ChoiceFilter(
        method="with_delivery", choices=Delivery.State.choices, label="Has a delivery in this state."
    )

    class Meta:
        model = Cluster
        fields: list[str] = []

    def with_delivery(self, rows: QuerySet[Cluster], _: str, value: str) -> QuerySet[Cluster]:
        return rows.filter(Q(pk__in=Delivery.objects.filter(state=value).values("cluster")))


class ClusterGroupFilter(NameFilter):
    class Meta:
        model = ClusterGroup
        fields: list[str] = []


class CredentialFilter(NameFilter):
    kind = filters.ChoiceFilter(choices=Credential.Kind.choices)

    class Meta:
        model = Credential
        fields: list[str] = []
