"""The questions of `manage.py doctor --deep`, and how far they are."""

import json
from typing import ClassVar

from django.contrib import admin
from django.db.models import Q

from repos.admin.base import REMOTES_REFS, LeasedAdmin, RulesFilter, cut
from repos.models import Probe

WAITING, AT_WORK, ANSWERED, FAILED = "waiting", "at work", "answered", "failed"
# Of an answer, which may be a hundred thousand refs.
SHOWN = 2000


def state_of(probe: Probe) -> str:
    """Where the question is, as StateFilter says it in SQL."""
    if probe.ended_at is not None:
        return FAILED if probe.error else ANSWERED
    return AT_WORK if probe.lease_token else WAITING


class StateFilter(RulesFilter):
    title = "state"
    parameter_name = "state"

    def rules(self) -> dict[str, Q]:
        ended, leased = Q(ended_at__isnull=False), Q(lease_token__isnull=False)
        return {
            WAITING: ~ended & ~leased,
            AT_WORK: ~ended & leased,
            ANSWERED: ended & Q(error=""),
            FAILED: ended & ~Q(error=""),
        }


@admin.register(Probe)
class ProbeAdmin(LeasedAdmin):
    empty = "Nothing has been asked: manage.py doctor --deep asks remotes, targets and machines."
    list_display = ["shown_kind", "asked", "state", "created_at", "ended_at", "reason"]
    list_select_related = ["remote", "delivery__gitrepo", "delivery__cluster"]
    list_filter = ["kind", StateFilter]
    search_fields = ["remote__url", "delivery__gitrepo__name", "delivery__cluster__name", "worker_host"]
    ordering = ["-pk"]
    heavy = ("answer", *REMOTES_REFS)
    exclude = ["answer"]
    readonly_fields: ClassVar[tuple[str, ...]] = ("state", "shown_answer", *LeasedAdmin.readonly_fields)

    @admin.display(description="kind", ordering="kind")
    def shown_kind(self, probe: Probe) -> str:
        return probe.kind

    @admin.display(description="asked")
    def asked(self, probe: Probe) -> str:
        if probe.delivery is not None:
            return str(probe.delivery)
        return cut(probe.remote.url if probe.remote is not None else probe.worker_host)

    @admin.display(description="state")
    def state(self, probe: Probe) -> str:
        return state_of(probe)

    @admin.display(description="error")
    def reason(self, probe: Probe) -> str:
        return cut(probe.error)

    @admin.display(description="answer")
    def shown_answer(self, probe: Probe) -> str:
        """The beginning of it."""
        return cut(json.dumps(probe.answer, ensure_ascii=False), SHOWN) if state_of(probe) == ANSWERED else ""
