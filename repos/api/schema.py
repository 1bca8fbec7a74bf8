"""What the OpenAPI schema says beyond the views: the refusals that all of them share."""

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiResponse

from repos.api.fields import StrictSerializer

REFUSED = OpenApiResponse(
    {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
    description="Refused: a sentence for each field that breaks a rule. Nothing was changed.",
)
DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
ALWAYS = {
    "401": "No token and no session, or a wrong one.",
    "403": "Not allowed to this user.",
    "404": "There is none of this name, or this user may not see it.",
    "503": "The database is busy or away: Retry-After says when to try again.",
}
WITH_A_BODY = {
    "413": "The body is over its limit.",
    "415": "The body is neither of the content types that are read here.",
}
IN_CONFLICT = {"409": "Still in use, or changed by somebody else at the same moment."}


class DocumentedSchema(AutoSchema):
    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        further = {**ALWAYS, **(WITH_A_BODY if "requestBody" in operation else {})}
        if self.method != "GET":
            further |= IN_CONFLICT
        for code, description in further.items():
            content = {"application/json": {"schema": DETAIL}}
            operation["responses"].setdefault(code, {"description": description, "content": content})
        if self.method == "GET":
            malformed = {"description": "A filter or parameter that is not understood.", "content": self._any_json()}
            operation["responses"].setdefault("400", malformed)
        return operation

    def _any_json(self) -> dict[str, Any]:
        return {"application/json": {"schema": {"type": "object", "additionalProperties": {}}}}

    def _map_basic_serializer(self, serializer: Any, direction: Any) -> Any:
        schema: dict[str, Any] = super()._map_basic_serializer(serializer, direction)  # type: ignore[no-untyped-call]
        if isinstance(serializer, StrictSerializer):
            schema["additionalProperties"] = False
        return schema
