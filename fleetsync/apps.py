"""fleetsync as a Django app: its system checks and its commands."""

from django.apps import AppConfig


class FleetsyncConfig(AppConfig):
    name = "fleetsync"
    verbose_name = "fleetsync"

    def ready(self) -> None:
        from fleetsync import checks  # noqa: F401 - importing registers them
