"""How the processes of fleetsync are wired; nothing here knows about git."""

from fleetsync.celery import app as celery_app

__all__ = ["celery_app"]
