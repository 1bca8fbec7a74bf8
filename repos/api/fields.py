"""Serializer fields that take JSON's types as they are: text is text, true is true, and nothing is coerced."""

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from django.db.models import Model
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.fields import empty
from rest_framework.settings import api_settings

from repos.api.permissions import may_see
from repos.models import Credential
from repos.validators import shown, validate_name

Schema = dict[str, Any]
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
PATHS: Schema = {"type": "array", "items": {"type": "string"}}
SELECTOR: Schema = {
    "type": "object",
    "description": "A Kubernetes LabelSelector; {} selects every cluster.",
    "properties": {
        "matchLabels": TEXTS,
        "matchExpressions": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["key", "operator"],
                "properties": {
                    "key": {"type": "string"},
                    "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                    "values": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
TARGETS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "cluster": {"type": "string"},
            "cluster_selector": SELECTOR,
            "cluster_group": {"type": "string"},
        },
    },
}


def rules(model: type[Model], name: str) -> list[Any]:
    """The validators of a model's field: the rules live there."""
    return list(model._meta.get_field(name).validators)  # type: ignore[union-attr]


class Text(serializers.CharField):
    """A JSON string, with its spaces as they came: a URL with one in front is refused, not mended."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("This is a text in quotes.", code="type")
        return data


class Flag(serializers.BooleanField):
    """true or false."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            raise serializers.ValidationError("This is true or false, without quotes.", code="type")
        return data


class Whole(serializers.IntegerField):
    """A JSON number without a fraction."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int) or isinstance(data, bool):
            raise serializers.ValidationError("This is a whole number, without quotes.", code="type")
        return data


class Json(serializers.JSONField):
    """An object or a list, whose rules are its validators."""

    def __init__(self, *, default: Any = empty, **kwargs: Any) -> None:
        super().__init__(default=default, **kwargs)

    kind: type = dict
    sentence = "This is an object."

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, self.kind):
            raise serializers.ValidationError(self.sentence, code="type")
        return data


@extend_schema_field(PATHS)
class Paths(Json):
    kind, sentence = list, "This is a list of texts."


@extend_schema_field(TARGETS)
class Targets(Json):
    kind, sentence = list, "This is a list of objects."


@extend_schema_field(TEXTS)
class Texts(Json):
    sentence = "This is an object of texts."


@extend_schema_field(SELECTOR)
class Selector(Json):
    sentence = "This is an object with matchLabels, matchExpressions or both."


@extend_schema_field({"type": "object", "additionalProperties": {}})
class Settings(Json):
    sentence = "This is an object."


@extend_schema_field({"type": "string", "nullable": True, "description": "The name of a credential, or nothing."})
class CredentialName(serializers.Field[Any, Any, str, Any]):
    """A Credential by its name; null and "" are none. One that the user may not see does not exist.

    The one that is attached already may stay whoever edits: `self.parent.instance` says which that is.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_null=True, **kwargs)

    def to_internal_value(self, data: Any) -> Credential | None:
        if data == "":
            return None
        try:
            validate_name(data)
        except DjangoValidationError:
            raise serializers.ValidationError("This is the name of a credential, or null.", code="type") from None
        credential = Credential.objects.filter(name=data).first()
        attached = getattr(self.parent.instance, "credential_id", None)
        user = self.context.get("user")
        hidden = user is not None and not may_see(user, "credential")
        if credential is None or (hidden and credential.pk != attached):
            raise serializers.ValidationError("There is no credential of this name. Create it first.", code="unknown")
        return credential

    def to_representation(self, value: Credential | None) -> str:
        return value.name if value is not None else ""


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses what it does not know, by name. Read-only fields are passed over, so that what was read can be written."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise serializers.ValidationError(
                {api_settings.NON_FIELD_ERRORS_KEY: ["The body is an object."]}, code="type"
            )
        errors: dict[str, Any] = {}
        value: Any = None
        try:
            value = super().to_internal_value(data)
        except serializers.ValidationError as error:
            assert isinstance(error.detail, dict)  # noqa: S101 (a serializer's always is)
            errors.update(error.detail)
        known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
        for key in data:
            if key not in self.fields:
                errors[shown(key).strip("'")] = [f"There is no such field; known are {known}."]
        if errors:
            raise serializers.ValidationError(errors)
        return value
