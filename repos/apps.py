from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ReposConfig(AppConfig):
    name = "repos"
    verbose_name = "Git repositories and clusters"

    def ready(self) -> None:
        from repos.triggers import install_triggers

        post_migrate.connect(install_triggers, sender=self)
