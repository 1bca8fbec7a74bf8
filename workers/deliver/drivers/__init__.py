"""The drivers by name. A new one is one module, a line here, its schema in repos/drivers.py and its tests."""

from collections.abc import Callable

from django.conf import settings

from workers.deliver.drivers.base import Driver, DriverError
from workers.deliver.drivers.directory import DirectoryDriver

_MAKERS: dict[str, Callable[[], Driver]] = {
    DirectoryDriver.name: lambda: DirectoryDriver(below=str(settings.DELIVERY_DIRECTORY_ROOT)),
}


def driver_for(name: str) -> Driver:
    """The driver of that name; DriverError "driver_unknown" if there is none."""
    maker = _MAKERS.get(name)
    if maker is None:
        raise DriverError(
            "driver_unknown",
            f"There is no driver named {name[:100]!a}; set the cluster's driver to one of: {', '.join(_MAKERS)}.",
        )
    return maker()
