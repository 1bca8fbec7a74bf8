"""Numbers only rise, whoever writes them: the database itself says so."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction

from repos.models import Delivery, GitRepo, Revision
from repos.triggers import RULES, install_triggers
from tests.core import cluster, register, synced


@pytest.fixture
def rows(db: None) -> None:
    """A GitRepo at generation 5 with revision 7, at a cluster that has (2, 9) and wants (3, 4)."""
    gitrepo = register()
    GitRepo.objects.update(generation=5, latest_revision=6)
    revision = synced(gitrepo)
    Delivery.objects.create(
        gitrepo=gitrepo, cluster=cluster(), epoch=3, sequence=4, applied_epoch=2, applied_sequence=9,
        wanted_revision=revision,
    )  # fmt: skip


def execute(sql: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)


FALLING = [
    pytest.param("UPDATE repos_gitrepo SET generation = 4", id="generation"),
    pytest.param("UPDATE repos_gitrepo SET latest_revision = 6", id="latest revision"),
    pytest.param("UPDATE repos_delivery SET sequence = 3", id="wanted sequence"),
    pytest.param("UPDATE repos_delivery SET epoch = 2, sequence = 99", id="wanted epoch"),
    pytest.param("UPDATE repos_delivery SET applied_sequence = 8", id="applied sequence"),
    pytest.param("UPDATE repos_delivery SET applied_epoch = 1, applied_sequence = 99", id="applied epoch"),
]
RISING = [
    pytest.param("UPDATE repos_gitrepo SET generation = 5, latest_revision = 7", id="the same numbers"),
    pytest.param("UPDATE repos_gitrepo SET generation = 6, latest_revision = 8", id="higher numbers"),
    pytest.param("UPDATE repos_delivery SET epoch = 4, sequence = 1", id="a new epoch begins anew"),
    pytest.param("UPDATE repos_delivery SET applied_epoch = 3, applied_sequence = 1", id="and is applied"),
    pytest.param("UPDATE repos_delivery SET sequence = 4, applied_sequence = 9", id="the same sequences"),
]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("sql", FALLING)
def test_a_number_that_falls_is_refused(sql: str) -> None:
    with pytest.raises(DatabaseError, match="only rises"):
        execute(sql)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("sql", RISING)
def test_a_number_that_does_not_fall_is_not(sql: str) -> None:
    execute(sql)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("number", "is_refused"), [(6, True), (7, True), (8, False), (20, False)])
def test_revisions_are_numbered_upwards(number: int, is_refused: bool) -> None:
    last = Revision.objects.get()
    again = Revision(
        gitrepo=last.gitrepo, number=number, commit=last.commit, generation=5, reason="new head",
        observed_at=last.observed_at,
    )  # fmt: skip
    if is_refused:
        with pytest.raises(DatabaseError), transaction.atomic():
            again.save()
    else:
        again.save()


@pytest.mark.usefixtures("rows")
def test_another_gitrepo_has_numbers_of_its_own() -> None:
    assert synced(register("other")).number == 1


# -- a migration -----------------------------------------------------------------------------------------------------


def triggers() -> set[str]:
    catalogue = {
        "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    }
    with connection.cursor() as cursor:
        cursor.execute(catalogue[connection.vendor])
        return {row[0] for row in cursor.fetchall()}


@pytest.fixture
def rebuilt(transactional_db: None) -> Iterator[None]:
    """Tables altered in a way for which SQLite makes them anew, and drops what hangs on them; put back afterwards."""
    changed: list[tuple[type[models.Model], Any, Any]] = []
    for name, column in (("GitRepo", "url"), ("Delivery", "last_error"), ("Revision", "ref")):
        model = apps.get_model("repos", name)
        old: Any = model._meta.get_field(column)
        new = models.CharField(max_length=3000, blank=True, default="")
        new.set_attributes_from_name(column)
        new.model = model
        with connection.schema_editor() as editor:
            editor.alter_field(model, old, new)
        changed.append((model, old, new))
    yield
    for model, old, new in changed:
        with connection.schema_editor() as editor:
            editor.alter_field(model, new, old)
    install_triggers()


@pytest.mark.django_db(transaction=True)
def test_the_rules_hold_after_a_migration_that_rebuilds_their_tables(rebuilt: None) -> None:
    if connection.vendor == "sqlite":
        assert triggers() == set()  # or this test shows nothing

    call_command("migrate", verbosity=0)  # every migrate ends with the signal

    assert {name for _, name, *_ in RULES} <= triggers()
    register()
    GitRepo.objects.update(generation=5)
    with pytest.raises(DatabaseError, match="only rises"):
        execute("UPDATE repos_gitrepo SET generation = 4")


@pytest.mark.django_db(transaction=True)
def test_installing_twice_is_installing_once() -> None:
    install_triggers()
    install_triggers()

    assert {name for _, name, *_ in RULES} <= triggers()
