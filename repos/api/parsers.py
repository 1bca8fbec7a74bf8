"""Bodies: JSON, and YAML as text. Bounded before anything is parsed."""

import json
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework import status
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

MAX_BODY_BYTES = 1024 * 1024


class BodyTooLarge(APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = f"A body has at most {MAX_BODY_BYTES} bytes. Send several requests."
    default_code = "too_large"


def read_body(stream: IO[bytes], context: Mapping[str, Any] | None) -> bytes:
    """The body, read no further than its limit. Raises BodyTooLarge."""
    request = (context or {}).get("request")
    length = request.META.get("CONTENT_LENGTH", "") if request is not None else ""
    if str(length).isdecimal() and int(length) > MAX_BODY_BYTES:
        raise BodyTooLarge
    body = stream.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class JSONParser(BaseParser):
    """JSON in UTF-8 as the standard has it: no NaN, no key twice, nested no deeper than Python can follow."""

    media_type = "application/json"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,  # noqa: ARG002 (REST framework's signature)
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        body = read_body(stream, parser_context)
        try:
            return json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_object)
        except RecursionError:
            raise ParseError("The body is nested too deeply.") from None
        except ValueError:
            raise ParseError("The body is not JSON in UTF-8, or names a key twice.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


class YAMLParser(BaseParser):
    """A Fleet manifest: handed on as bytes to repos.manifests, which knows what it may hold."""

    media_type = "application/yaml"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,  # noqa: ARG002 (REST framework's signature)
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        return read_body(stream, parser_context)


class TextYAMLParser(YAMLParser):
    media_type = "text/yaml"
