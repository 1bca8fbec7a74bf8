"""The web process's entry. A server that imports this refuses to serve while a system check fails."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")

application = get_wsgi_application()

from fleetsync.checks import refuse_to_start_with_errors  # noqa: E402 - needs the settings that the line above loads

refuse_to_start_with_errors()
