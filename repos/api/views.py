"""The views: who may, what was meant, one call of the door, and the answer."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from django.db import IntegrityError, models, transaction
from django.db.models import Count, QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from repos import clusters, registration
from repos.api import filters, ledger, waiting
from repos.api.errors import handle
from repos.api.fields import StrictSerializer
from repos.api.parsers import JSONParser, TextYAMLParser, YAMLParser
from repos.api.permissions import ModelPermissions
from repos.api.schema import REFUSED, DocumentedSchema
from repos.api.serializers import (
    ClusterGroupSerializer,
    ClusterSerializer,
    CredentialSerializer,
    GitRepoSerializer,
)
from repos.events import events_of
from repos.manifests import read_manifests
from repos.models import Cluster, ClusterGroup, Credential, Delivery, GitRepo
from repos.status import statuses

F = TypeVar("F", bound=Callable[..., Any])
NAMES = r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?"


class NamedViewSet(GenericViewSet[Any]):
    """Objects that are known by name: a list, and the verbs on one of them."""

    model: ClassVar[type[models.Model]]
    schema = DocumentedSchema()
    permission_classes = [ModelPermissions]
    parser_classes = [JSONParser]
    renderer_classes = [JSONRenderer]
    pagination_class = filters.Pages
    lookup_field = "name"
    lookup_value_regex = NAMES

    def get_exception_handler(self) -> Callable[..., Any]:
        return handle

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "user": self.request.user}

    def row(self) -> Any:
        """The row that the URL names. Raises NotFound."""
        found = self.get_queryset().filter(name=self.kwargs["name"]).first()
        if found is None:
            raise NotFound
        return found

    def key(self) -> int:
        """The primary key of that row, for what reads it under a lock. Raises NotFound."""
        found = self.get_queryset().filter(name=self.kwargs["name"]).values_list("pk", flat=True).first()
        if found is None:
            raise NotFound
        return int(found)

    def shown(self, rows: list[Any]) -> Any:
        """`rows` in JSON, with what the whole page needs read at once."""
        return self.get_serializer(rows, many=True).data

    def save(self, spec: Mapping[str, Any], pk: int | None) -> Any:
        """The door: create, or change the row with the key `pk`."""
        raise NotImplementedError

    def remove(self, pk: int) -> None:
        raise NotImplementedError

    def put_data(self, row: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a PUT with what the URL says already."""
        return {"name": row.name, **data}

    def list(self, *_: Any, **__: Any) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(self.shown(list(page or [])))

    def retrieve(self, *_: Any, **__: Any) -> Response:
        return Response(self.shown([self.row()])[0])

    def create(self, request: Request) -> Response:
        return Response(self.shown([self.make(request.data)])[0], status=status.HTTP_201_CREATED)

    def make(self, data: Any) -> Any:
        serializer = self.get_serializer(data=data)
        serializer.is_valid(raise_exception=True)
        try:
            with transaction.atomic():
                made = self.save(serializer.validated_data, None)
        except IntegrityError:
            # Somebody took the name after it was looked up.
            kind = self.model._meta.verbose_name
            raise serializers.ValidationError({"name": [f"A {kind} with this name exists already."]}) from None
        return self.get_queryset().get(pk=made.pk)

    def update(self, *_: Any, **__: Any) -> Response:
        return self.change(partial=False)

    def partial_update(self, *_: Any, **__: Any) -> Response:
        return self.change(partial=True)

    def change(self, *, partial: bool) -> Response:
        row, data = self.row(), self.request.data
        if not partial and isinstance(data, Mapping):
            data = self.put_data(row, data)
        serializer = self.get_serializer(row, data=data, partial=partial)
        serializer.is_valid(raise_exception=True)
        self.save(serializer.validated_data, row.pk)
        return Response(self.shown([self.get_queryset().get(pk=row.pk)])[0])

    def destroy(self, *_: Any, **__: Any) -> Response:
        self.remove(self.key())
        return Response(status=status.HTTP_204_NO_CONTENT)


REVISION = {"type": "integer", "minimum": 1, "maximum": waiting.LARGEST_REVISION}


def documented(serializer: type[StrictSerializer], noun: str) -> Any:
    """What the schema says of the six verbs."""
    changed = {200: serializer, 400: REFUSED}
    return extend_schema_view(
        list=extend_schema(summary=f"List {noun}s"),
        retrieve=extend_schema(summary=f"One {noun}"),
        create=extend_schema(summary=f"Create a {noun}", responses={201: serializer, 400: REFUSED}),
        update=extend_schema(summary=f"Change a {noun}; what is left out becomes its default", responses=changed),
        partial_update=extend_schema(summary=f"Change what is given of a {noun}", responses=changed),
        destroy=extend_schema(summary=f"Delete a {noun}"),
    )


def listed(serializer: type[serializers.BaseSerializer[Any]], summary: str) -> Callable[[F], F]:
    return extend_schema(summary=summary, responses=serializer(many=True), filters=False)


GITREPOS = {"oneOf": [{"$ref": "#/components/schemas/GitRepo"}, {"type": "array", "items": {"type": "object"}}]}


@documented(GitRepoSerializer, "GitRepo")
@extend_schema_view(
    create=extend_schema(
        summary="Register a GitRepo, or the GitRepos of a Fleet manifest: all of them or none",
        request={"application/json": GitRepoSerializer, "application/yaml": OpenApiTypes.STR},
        responses={
            201: OpenApiResponse(GITREPOS, description="The GitRepo; a list if the manifest has several."),
            400: REFUSED,
        },
    )
)
class GitRepoViewSet(NamedViewSet):
    model = GitRepo
    queryset = GitRepo.objects.alive().select_related("remote", "credential", "wanted_revision")
    serializer_class = GitRepoSerializer
    filterset_class = filters.GitRepoFilter

    def get_parsers(self) -> list[Any]:
        parsers = super().get_parsers()
        if not self.detail:
            parsers += [YAMLParser(), TextYAMLParser()]
        return parsers

    def shown(self, rows: list[Any]) -> Any:
        context = {**self.get_serializer_context(), "statuses": statuses(rows)}
        return GitRepoSerializer(rows, many=True, context=context).data

    def save(self, spec: Mapping[str, Any], pk: int | None) -> GitRepo:
        return registration.register(spec) if pk is None else registration.edit(pk, spec)

    def remove(self, pk: int) -> None:
        registration.delete(pk)

    def put_data(self, row: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        # A count has no default to go back to: it only rises.
        return {"name": row.name, "force_sync_generation": row.force_sync_generation, **data}

    def create(self, request: Request) -> Response:
        data: Any = request.data
        if not isinstance(data, bytes):
            return super().create(request)
        specs = read_manifests(data)
        with transaction.atomic():
            made = [self.make_nth(number, spec) for number, spec in enumerate(specs, 1)]
        shown = self.shown(made)
        return Response(shown if len(made) > 1 else shown[0], status=status.HTTP_201_CREATED)

    def make_nth(self, number: int, spec: Mapping[str, Any]) -> GitRepo:
        """Register one of several; a refusal says which one."""
        try:
            made: GitRepo = self.make(spec)
        except serializers.ValidationError as error:
            details = error.detail if isinstance(error.detail, dict) else {"non_field_errors": error.detail}
            name = spec.get("name", f"number {number}")
            raise serializers.ValidationError(
                {field: [f"{name}: {sentence}" for sentence in sentences] for field, sentences in details.items()}
            ) from None
        return made

    # -- verbs of their own ---------------------------------------------------------------------------------------

    def answer(self, pk: int, code: int = status.HTTP_200_OK) -> Response:
        return Response(self.shown([self.get_queryset().get(pk=pk)])[0], status=code)

    @extend_schema(
        summary="Sync the newest commit, even if nothing changed", request=None, responses={202: GitRepoSerializer}
    )
    @action(detail=True, methods=["post"])
    def sync(self, *_: Any, **__: Any) -> Response:
        return self.answer(registration.force(self.key()).pk, status.HTTP_202_ACCEPTED)

    @extend_schema(summary="Deliver nothing until resumed; polls go on", request=None, responses=GitRepoSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, *_: Any, **__: Any) -> Response:
        return self.answer(registration.edit(self.key(), {"paused": True}).pk)

    @extend_schema(summary="Deliver the newest again", request=None, responses=GitRepoSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, *_: Any, **__: Any) -> Response:
        return self.answer(registration.edit(self.key(), {"paused": False}).pk)

    @extend_schema(
        summary="Let held deliveries go on, as they are wanted now", request=None, responses=ledger.ApprovedSerializer
    )
    @action(detail=True, methods=["post"])
    def approve(self, *_: Any, **__: Any) -> Response:
        return Response({"approved": registration.approve(self.key())})

    # -- what happened --------------------------------------------------------------------------------------------

    def paged(
        self,
        rows: QuerySet[Any],
        serializer: type[serializers.BaseSerializer[Any]],
        pages: type[filters.Pages] = filters.Pages,
    ) -> Response:
        paginator = pages()
        page = paginator.paginate_queryset(rows, self.request, view=self)
        return paginator.get_paginated_response(serializer(page, many=True).data)

    @listed(ledger.RevisionSerializer, "Its revisions, newest first, with what became of each at every cluster")
    @action(detail=True, pagination_class=filters.RevisionPages)
    def revisions(self, *_: Any, **__: Any) -> Response:
        rows = self.row().revisions.select_related("bundle").prefetch_related("records__cluster").order_by("-number")
        return self.paged(rows, ledger.RevisionSerializer, filters.RevisionPages)

    @listed(ledger.JobSerializer, "Its sync jobs, newest first")
    @action(detail=True)
    def jobs(self, *_: Any, **__: Any) -> Response:
        return self.paged(self.row().jobs.select_related("revision").order_by("-pk"), ledger.JobSerializer)

    @listed(ledger.DeliverySerializer, "What is wanted and what is applied at each cluster")
    @action(detail=True)
    def deliveries(self, *_: Any, **__: Any) -> Response:
        rows = self.row().deliveries.select_related("cluster", "wanted_revision", "applied_revision")
        return self.paged(rows.order_by("cluster__name"), ledger.DeliverySerializer)

    @listed(ledger.EventSerializer, "What happened, newest first")
    @action(detail=True)
    def events(self, *_: Any, **__: Any) -> Response:
        return self.paged(events_of(self.row()), ledger.EventSerializer)

    @extend_schema(
        summary="Answers when a revision has ended, or the time is over",
        parameters=[
            OpenApiParameter("revision", REVISION, description="Its number; the newest if left out."),
            OpenApiParameter("timeout", str, description="Seconds, or a duration like 30s; at most a minute."),
        ],
        responses={200: ledger.WaitSerializer, 400: REFUSED},
    )
    @action(detail=True, pagination_class=None)
    def wait(self, request: Request, **_: Any) -> Response:
        number = waiting.revision_number(request.query_params.get("revision"))
        seconds = waiting.timeout_seconds(request.query_params.get("timeout"))
        return Response(waiting.wait_for(self.key(), number, seconds))


@documented(ClusterSerializer, "Cluster")
class ClusterViewSet(NamedViewSet):
    model = Cluster
    queryset = Cluster.objects.all()
    serializer_class = ClusterSerializer
    filterset_class = filters.ClusterFilter

    def shown(self, rows: list[Any]) -> Any:
        counts: dict[int, dict[str, int]] = {}
        there = Delivery.objects.filter(cluster__in=[row.pk for row in rows]).order_by()
        for pk, state, count in there.values_list("cluster", "state").annotate(Count("pk")):
            counts.setdefault(pk, {})[state] = count
        return ClusterSerializer(rows, many=True, context={**self.get_serializer_context(), "counts": counts}).data

    def save(self, spec: Mapping[str, Any], pk: int | None) -> Cluster:
        return clusters.save_cluster(spec, pk)

    def remove(self, pk: int) -> None:
        clusters.delete_cluster(pk)


@documented(ClusterGroupSerializer, "ClusterGroup")
class ClusterGroupViewSet(NamedViewSet):
    model = ClusterGroup
    queryset = ClusterGroup.objects.all()
    serializer_class = ClusterGroupSerializer
    filterset_class = filters.ClusterGroupFilter

    def save(self, spec: Mapping[str, Any], pk: int | None) -> ClusterGroup:
        return clusters.save_group(spec, pk)

    def remove(self, pk: int) -> None:
        clusters.delete_group(pk)


@documented(CredentialSerializer, "Credential")
class CredentialViewSet(NamedViewSet):
    model = Credential
    queryset = Credential.objects.all()
    serializer_class = CredentialSerializer
    filterset_class = filters.CredentialFilter

    def save(self, spec: Mapping[str, Any], pk: int | None) -> Credential:
        return clusters.save_credential(spec, pk)

    def remove(self, pk: int) -> None:
        clusters.delete_credential(pk)
