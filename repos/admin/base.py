"""What the admin pages share: refusals become messages, and what the pipeline writes is read only.

Everything that a repository, a server or a user wrote is shown as escaped text, URLs too.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import IntegrityError, OperationalError
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.formats import localize
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from simple_history.admin import SimpleHistoryAdmin

from repos.leases import Leased

SHORT = 12
# What a cell of a list shows of a longer text.
CELL = 80
# The same within a page, where the whole text is a click away.
SENTENCE = 200
LATEST = 20
# What a repository may have a hundred thousand of: no list reads them.
REFS = ("refs", "asked", "recent", "returning")
REMOTES_REFS = tuple(f"remote__{name}" for name in REFS)

Row = TypeVar("Row", bound=Model)


def cut(text: str, length: int = CELL) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def moment(instant: datetime | None) -> str:
    """An instant as the lists show it, "" for none."""
    return "" if instant is None else str(localize(instant))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "none yet") -> SafeString:
    """An HTML table of escaped cells, which scrolls if it is wide; `empty` if there are no rows."""
    lines = [format_html_join("", "{}", ([_cell(value)] for value in row)) for row in rows]
    if not lines:
        return format_html("<p>{}</p>", empty)
    return format_html(
        '<div class="fleetsync-table"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>',
        format_html_join("", "<th>{}</th>", ([head] for head in heads)),
        format_html_join("", "<tr>{}</tr>", ([line] for line in lines)),
    )


def _cell(value: Any) -> SafeString:
    if isinstance(value, datetime):
        return format_html('<td class="nowrap">{}</td>', moment(value))
    return format_html("<td>{}</td>", "–" if value in (None, "") else value)


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To look at: the pipeline writes these rows, and nobody else."""

    # What an empty list says: when there will be rows.
    empty = ""
    show_full_result_count = False
    # What a list leaves in the database: it can be megabytes a row, and no column shows it.
    heavy: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer(*self.heavy)

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False


class LeasedAdmin(ReadOnlyAdmin):
    """The same for rows that are claimed: their pages say who is at work on them."""

    readonly_fields: ClassVar[tuple[str, ...]] = ("at_work", "crashes")

    @admin.display(description="at work")
    def at_work(self, row: Leased) -> str:
        """The lease's holder, as the row says: a lease in the past has run out."""
        return f"{row.lease_owner}, until {moment(row.lease_until)}" if row.lease_token else "nobody"


class RulesFilter(admin.SimpleListFilter):
    """A filter with one predicate for each of its choices."""

    def rules(self) -> dict[str, Q]:
        raise NotImplementedError

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in self.rules()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        rule = self.rules().get(self.value() or "")
        return queryset if rule is None else queryset.filter(rule)


class DoorAdmin(SimpleHistoryAdmin):  # type: ignore[misc]
    """For models that are written through a door of their own (`save` and `remove`), never by the form."""

    # What an empty list says: what to do.
    empty = ""

    def save(self, spec: dict[str, Any], pk: int | None) -> Any:
        """The door: create, or change the row with the key `pk`. Raises ValidationError."""
        raise NotImplementedError

    def remove(self, pk: int) -> None:
        raise NotImplementedError

    def spec_of(self, form: "forms.ModelForm[Any]") -> dict[str, Any]:
        """The fields that the user changed since the page was opened: see SpecForm."""
        return {name: form.cleaned_data[name] for name in form.changed_data}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:  # noqa: ARG002
        saved = self.save(self.spec_of(form), obj.pk if change else None)
        obj.__dict__.update(saved.__dict__)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:  # noqa: ARG002
        self.remove(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:  # noqa: ARG002
        for pk in queryset.order_by("pk").values_list("pk", flat=True):
            self.remove(pk)

    def get_deleted_objects(
        self,
        objs: Any,
        request: HttpRequest,  # noqa: ARG002
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """The rows alone: what hangs on them goes by the door's rules, not by the user's right to each of it."""
        names = [str(obj) for obj in objs]
        return names, {str(self.model._meta.verbose_name_plural): len(names)}, set(), []

    # -- refusals that a form could not foresee ---------------------------------------------------------------

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._or_message(super().changeform_view, request, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._or_message(super().delete_view, request, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._or_message(super().changelist_view, request, *args, **kwargs)

    def _or_message(
        self, view: Callable[..., HttpResponse], request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """The view, or back to its page with the refusal as a message; its transaction is rolled back by then."""
        try:
            return view(request, *args, **kwargs)
        except (ValidationError, IntegrityError, OperationalError) as error:
            if request.method != "POST":
                raise
            for sentence in sentences(error):
                self.message_user(request, sentence, messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    # -- history is to be read: a spec goes back by an edit, as any other ------------------------------------------

    def revert_disabled(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return True

    def history_form_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            return HttpResponse(status=405)
        response: HttpResponse = super().history_form_view(request, *args, **kwargs)
        return response


def sentences(error: Exception) -> list[str]:
    """What a refusal says to people."""
    if isinstance(error, ValidationError):
        return error.messages
    if isinstance(error, IntegrityError):
        return ["Somebody changed the same thing at the same moment. Nothing was saved; try again."]
    return ["The database is busy. Nothing was saved; try again in a moment."]
