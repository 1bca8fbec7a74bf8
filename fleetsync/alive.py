"""A sign of life for a container's health check: a file whose time says when its process last went round."""

import logging
import os
from pathlib import Path

from django.conf import settings


def alive_file(name: str) -> Path:
    """Where the process `name` of this host shows that it lives; compose.yaml looks at its age."""
    return Path(settings.DATA_DIR) / "run" / f"{name}.{os.uname().nodename}.alive"


def show_alive(name: str) -> None:
    """Touches the file. A full or read-only disk is not this process's end: the health check will tell."""
    path = alive_file(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        logging.getLogger(__name__).warning("cannot touch %s: %s", path, error.strerror)
