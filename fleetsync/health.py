"""The health doors: /healthz says that the process answers, /readyz that it can do its work."""

from collections.abc import Callable
from functools import cache

import structlog
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from fleetsync.redis import redis_client

log = structlog.get_logger(__name__)


class NotReady(Exception):
    """What is missing, in a sentence for everybody: no address, no password."""


@require_safe
@never_cache
def healthz(_: HttpRequest) -> JsonResponse:
    """200 as long as the process answers. Asks nobody: a process is not restarted for its database's sake."""
    return JsonResponse({"healthy": True})


@require_safe
@never_cache
def readyz(_: HttpRequest) -> JsonResponse:
    """200 if every check holds, else 503; {"ready": bool, "checks": {name: {"ok": bool, "message": str}}}."""
    checks: dict[str, dict[str, object]] = {}
    for name, check in CHECKS.items():
        try:
            check()
            checks[name] = {"ok": True, "message": ""}
        except Exception as error:  # noqa: BLE001 - whatever it is: it is not ready
            log.warning("not ready", check=name, error=str(error)[:200])
            message = str(error) if isinstance(error, NotReady) else SENTENCES[name]
            checks[name] = {"ok": False, "message": message}
    ready = all(check["ok"] for check in checks.values())
    return JsonResponse({"ready": ready, "checks": checks}, status=200 if ready else 503)


def check_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@cache
def migrations_on_disk() -> frozenset[tuple[str, str]]:
    """The migrations that this version of the code comes with; it never changes while the process lives."""
    return frozenset(MigrationLoader(None).disk_migrations or ())


def check_migrations() -> None:
    if migrations_on_disk() - set(MigrationRecorder(connection).applied_migrations()):
        raise NotReady("Migrations are missing: run `manage.py migrate`.")


def check_broker() -> None:
    """Within fleetsync.redis.TIMEOUT."""
    redis_client().ping()


CHECKS: dict[str, Callable[[], None]] = {
    "database": check_database,
    "migrations": check_migrations,
    "broker": check_broker,
}
SENTENCES = {
    "database": "The database does not answer: see DATABASE_URL and this process's log.",
    "migrations": "The database does not say which migrations it has.",
    "broker": "The broker does not answer: see REDIS_URL and this process's log. Work goes on, more slowly to start.",
}
