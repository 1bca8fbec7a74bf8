"""Rules about numbers that only rise, held by the database itself.

They are triggers, because no check constraint sees the old row. They are made again after every migrate: Django's
SQLite backend rebuilds a table to alter it, and drops its triggers without a word.
"""

from typing import Any

from django.db import connections

# (table, name, event, condition under which the write is refused, the sentence)
RULES = [
    (
        "repos_revision",
        "revision_number_rises",
        "BEFORE INSERT",
        "EXISTS (SELECT 1 FROM repos_revision r WHERE r.gitrepo_id = NEW.gitrepo_id AND r.number >= NEW.number)",
        "revision numbers of a GitRepo only rise",
    ),
    (
        "repos_gitrepo",
        "latest_revision_rises",
        "BEFORE UPDATE OF latest_revision",
        "NEW.latest_revision < OLD.latest_revision",
        "the latest revision of a GitRepo only rises",
    ),
    (
        "repos_gitrepo",
        "generation_rises",
        "BEFORE UPDATE OF generation",
        "NEW.generation < OLD.generation",
        "the generation of a GitRepo only rises",
    ),
    (
        "repos_delivery",
        "wanted_order_rises",
        "BEFORE UPDATE OF epoch, sequence",
        "(NEW.epoch, NEW.sequence) < (OLD.epoch, OLD.sequence)",
        "the (epoch, sequence) wanted of a Delivery only rises",
    ),
    (
        "repos_delivery",
        "applied_order_rises",
        "BEFORE UPDATE OF applied_epoch, applied_sequence",
        "(NEW.applied_epoch, NEW.applied_sequence) < (OLD.applied_epoch, OLD.applied_sequence)",
        "the (epoch, sequence) applied of a Delivery only rises",
    ),
]


def install_triggers(using: str = "default", **_: Any) -> None:
    """Create or replace every rule in the database `using`."""
    connection = connections[using]
    existing = set(connection.introspection.table_names())
    with connection.cursor() as cursor:
        for table, name, event, refused, sentence in RULES:
            if table not in existing:
                continue
            cursor.execute(
                f"DROP TRIGGER IF EXISTS {name}" + (f" ON {table}" if connection.vendor == "postgresql" else "")
            )
            if connection.vendor == "postgresql":
                cursor.execute(
                    f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                    f"IF {refused} THEN RAISE EXCEPTION '{sentence}' USING ERRCODE = 'check_violation'; END IF; "
                    f"RETURN NEW; END $$"
                )
                cursor.execute(f"CREATE TRIGGER {name} {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
            else:
                cursor.execute(
                    f"CREATE TRIGGER {name} {event} ON {table} WHEN {refused} "
                    f"BEGIN SELECT RAISE(ABORT, '{sentence}'); END"
                )
