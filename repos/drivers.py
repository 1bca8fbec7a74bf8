"""What the settings of each driver are. Here rather than with the drivers, so that saving a Cluster needs no
worker."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from django.conf import settings
from django.core.exceptions import ValidationError

from repos.validators import shown

MAX_PATH_LENGTH = 1024
MAX_KEEP_RELEASES = 50
DEFAULT_KEEP_RELEASES = 3

# No leading dot or hyphen, nothing that a shell reads: none of these names needs quoting or is hidden or an
# option.
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class DriverSchema:
    """The settings of one driver."""

    name: str
    description: str
    secret_names: tuple[str, ...]  # keys whose values are encrypted at rest and never read back
    # Takes settings as they came in; returns them complete, with defaults; raises ValidationError naming the
    # key.
    validate: Callable[[dict[str, Any]], dict[str, Any]]


def validate_driver_settings(driver: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The complete settings of a Cluster whose driver is `driver`. Raises ValidationError naming the key and
    the rule."""
    schema = DRIVERS.get(driver) if isinstance(driver, str) else None
    if schema is None:
        _refuse(f"There is no such driver; known are {', '.join(DRIVERS)}.")
    if not isinstance(settings, dict):
        _refuse("Driver settings are an object.")
    return schema.validate(settings)


def _directory(given: dict[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in ("path", "keep_releases"):
            _refuse(f"{shown(key)} is no setting of the driver directory; known are path and keep_releases.")
    keep = given.get("keep_releases", DEFAULT_KEEP_RELEASES)
    # In Python True is an int, in JSON it is not.
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= MAX_KEEP_RELEASES:
        _refuse(f"keep_releases: This is a whole number from 1 to {MAX_KEEP_RELEASES}.")
    return {"path": _directory_path(given.get("path")), "keep_releases": keep}


def _directory_path(path: object) -> str:
    """`path`, if it is a folder below DELIVERY_DIRECTORY_ROOT, as written and with the links of this moment
    followed."""
    if not isinstance(path, str) or not path.startswith("/"):
        _refuse("path: This is the absolute path of a folder below DELIVERY_DIRECTORY_ROOT.")
    if len(path) > MAX_PATH_LENGTH:
        _refuse(f"path: This has at most {MAX_PATH_LENGTH} characters.")
    root = Path(settings.DELIVERY_DIRECTORY_ROOT).absolute()
    bases = {str(root).rstrip("/") + "/", str(root.resolve()).rstrip("/") + "/"}
    below = next((path.removeprefix(base) for base in bases if path.startswith(base)), None)
    if not below:
        _refuse("path: The folder lies below DELIVERY_DIRECTORY_ROOT and is not that folder itself.")
    if not all(_FOLDER_NAME.fullmatch(name) for name in below.split("/")):
        _refuse(
            "path: The names below DELIVERY_DIRECTORY_ROOT have at most 128 letters, digits, -, _ "
            "and ., and begin with a letter, digit or _. There is no .., no // and no / at the end."
        )
    try:
        inside = root.resolve() in Path(path).resolve().parents
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        _refuse("path: A symbolic link on the way to the folder leads out of DELIVERY_DIRECTORY_ROOT.")
    return path


def _refuse(message: str) -> NoReturn:
    raise ValidationError(message, code="driver_settings")


DRIVERS: dict[str, DriverSchema] = {
    schema.name: schema
    for schema in (
        DriverSchema(
            name="directory",
            description="A folder on this machine: releases side by side, and a link `current` to the one in force.",
            secret_names=(),
            validate=_directory,
        ),
    )
}
