"""gunicorn's settings, read by `--config python:fleetsync.gunicorn`."""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")

from django.conf import settings

bind = [f"{settings.WEB_ADDRESS}:{settings.PORT}"]
workers = settings.WEB_PROCESSES
# Threads, because a request may wait: gitrepos/{name}/wait/ answers when a revision has ended.
worker_class = "gthread"
threads = settings.WEB_THREADS
# The application is loaded once and forked: a quicker start, and a failing system check ends the whole
# process.
preload_app = True
timeout = 60
graceful_timeout = 4
# Sockets that a proxy keeps open outlive the usual 60 s of the proxy, so that it never writes into a closing
# one.
keepalive = 65
# No file below /tmp whose disk could stall the heartbeat.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
# Requests are logged by django-structlog's middleware, with the user and the request's id.
accesslog = None
# A door for commands, in the user's home folder, that nobody here uses.
control_socket_disable = True
logconfig_dict: dict[str, Any] = {
    **settings.LOGGING,
    "loggers": {
        **settings.LOGGING["loggers"],
        "gunicorn.error": {"handlers": [], "propagate": True, "level": "INFO"},
        "gunicorn.access": {"handlers": [], "propagate": False},
    },
}
# Threads of a worker that hangs are cut after `timeout`; a worker is never replaced for its age.
max_requests = 0
