"""Credentials: their secret is written here and never shown."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest

from repos import clusters
from repos.admin.base import DoorAdmin
from repos.admin.forms import CredentialForm
from repos.models import Credential


@admin.register(Credential)
class CredentialAdmin(DoorAdmin):
    form = CredentialForm
    empty = "There is no credential yet. Public repositories need none; add one above, and choose it in a GitRepo."
    fields = ["name", "kind", "username", "new_secret", "known_hosts"]
    list_display = ["name", "kind", "username", "used_by", "updated_at"]
    list_filter = ["kind"]
    search_fields = ["name", "username"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Credential]:
        rows: QuerySet[Credential] = super().get_queryset(request)
        return rows.annotate(users=Count("gitrepos", filter=Q(gitrepos__deleted_at__isnull=True)))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:  # noqa: ARG002
        return ["name"] if obj is not None else []

    def spec_of(self, form: "forms.ModelForm[Any]") -> dict[str, Any]:
        spec = super().spec_of(form)
        secret = spec.pop("new_secret", "")
        return {**spec, "secret": secret} if secret else spec

    def save(self, spec: dict[str, Any], pk: int | None) -> Credential:
        return clusters.save_credential(spec, pk)

    def remove(self, pk: int) -> None:
        clusters.delete_credential(pk)

    @admin.display(description="used by", ordering="users")
    def used_by(self, credential: Any) -> str:
        return f"{credential.users} GitRepos"
