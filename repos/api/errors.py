"""What a client sees of an error: a status, and a sentence for each field, never a traceback."""

from typing import Any

import structlog
from django.core.exceptions import NON_FIELD_ERRORS, RequestDataTooBig
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import IntegrityError, InterfaceError, OperationalError
from django.db.models import ObjectDoesNotExist
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions, status
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import exception_handler

from repos.api.parsers import BodyTooLarge
from repos.clusters import InUse

log = structlog.get_logger(__name__)


@csrf_exempt
def not_found(_: HttpRequest) -> JsonResponse:
    """Whatever else is asked for below /api/: JSON for clients, also where the slash at the end is missing."""
    return JsonResponse({"detail": "There is nothing at this path. Paths of the API end with a slash."}, status=404)


class Conflict(exceptions.APIException):
    status_code = status.HTTP_409_CONFLICT
    default_detail = "Somebody changed the same thing at the same moment. Try again."
    default_code = "conflict"


class Busy(exceptions.APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "The database is busy or away. Nothing was changed; try again in a moment."
    default_code = "busy"
    # Seconds: REST framework sends it as Retry-After.
    wait = 1


def refusal(error: DjangoValidationError) -> exceptions.ValidationError:
    """A model's or a door's ValidationError as {"field": ["sentence"]}."""
    if not hasattr(error, "error_dict"):
        return exceptions.ValidationError({api_settings.NON_FIELD_ERRORS_KEY: error.messages})
    fields = {
        api_settings.NON_FIELD_ERRORS_KEY if name == NON_FIELD_ERRORS else name: messages
        for name, messages in error.message_dict.items()
    }
    return exceptions.ValidationError(fields)


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """REST framework's handler, with what the database and the doors below the views raise translated first."""
    if isinstance(error, InUse):
        error = Conflict(error.messages[0])
    elif isinstance(error, DjangoValidationError):
        error = refusal(error)
    elif isinstance(error, exceptions.ParseError):
        error = exceptions.ValidationError({api_settings.NON_FIELD_ERRORS_KEY: [str(error.detail)]})
    elif isinstance(error, ObjectDoesNotExist):
        error = exceptions.NotFound()
    elif isinstance(error, RequestDataTooBig):
        error = BodyTooLarge()
    elif isinstance(error, OperationalError | InterfaceError):
        log.warning("a request met a busy database", error=str(error)[:200])
        error = Busy()
    elif isinstance(error, IntegrityError):
        error = Conflict()
    return exception_handler(error, context)
