"""The doctor's cheap examination, for staff: it names GitRepos and clusters that not everybody may see."""

from collections.abc import Callable
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import IsAdminUser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from repos.api.errors import handle
from repos.api.schema import DocumentedSchema
from repos.doctor.examination import examine
from repos.doctor.finding import ERROR, KINDS, WARNING


class FindingSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(list(KINDS), help_text="What sort of thing it is; stable.")
    severity = serializers.ChoiceField([ERROR, WARNING], help_text="error: a promise is broken. warning: a fact.")
    subject = serializers.CharField(help_text="What it is about, as in `delivery of shop at prod-eu`.")
    message = serializers.CharField(help_text="What is wrong.")
    advice = serializers.CharField(help_text="What to do next.")
    count = serializers.IntegerField(help_text="Of how many things it tells.")


class ReportSerializer(serializers.Serializer[Any]):
    healthy = serializers.BooleanField(help_text="No error; there may be warnings.")
    deep = serializers.BooleanField(help_text="Whether remotes, targets and machines were asked as well.")
    examined_at = serializers.DateTimeField()
    errors = serializers.IntegerField()  # type: ignore[assignment]
    warnings = serializers.IntegerField()
    totals = serializers.DictField(child=serializers.IntegerField(), help_text="How many findings, for every kind.")
    findings = FindingSerializer(many=True, help_text="At most 100 of each kind, errors first.")


class DoctorView(APIView):
    schema = DocumentedSchema()
    permission_classes = [IsAdminUser]
    renderer_classes = [JSONRenderer]

    def get_exception_handler(self) -> Callable[..., Any]:
        return handle

    @extend_schema(summary="Is every promise kept? For staff", responses=ReportSerializer)
    def get(self, request: Request) -> Response:  # noqa: ARG002 (as in the base)
        return Response(examine().as_json())
