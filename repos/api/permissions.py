"""Who may do what: Django's model permissions, for reading as well.

Without the right to see a kind of object, each of its objects is a 404, whether it exists or not; with that right but
without the right to do what was asked, the answer is 403.
"""

from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

READS = frozenset({"list", "retrieve", "metadata", "revisions", "jobs", "deliveries", "events", "wait"})
VERBS = {"create": "add", "destroy": "delete"}


def may(user: Any, verb: str, model: str) -> bool:
    """Whether `user` has the permission `verb` (view, add, change, delete) for one of our models."""
    return bool(user.has_perm(f"repos.{verb}_{model}"))


def may_see(user: Any, model: str) -> bool:
    """Who may change something may see it."""
    return may(user, "view", model) or may(user, "change", model)


class ModelPermissions(BasePermission):
    """For views with `model`, `action` and `detail`."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not request.user.is_authenticated:
            return False
        model = view.model._meta.model_name  # type: ignore[attr-defined]
        action = getattr(view, "action", None)
        sees = may_see(request.user, model)
        if getattr(view, "detail", False) and not sees:
            raise NotFound
        # No action: a method that the view does not have, which gets its 405 afterwards.
        if action is None or action in READS:
            return sees
        return may(request.user, VERBS.get(action, "change"), model)
