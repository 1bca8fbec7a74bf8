"""The drivers by name. A new one is one module, a line here, its schema in repos/drivers.py and its tests."""

from workers.deliver.drivers.base import Driver, DriverError
from workers.deliver.drivers.directory import DirectoryDriver

DRIVERS: dict[str, Driver] = {driver.name: driver for driver in (DirectoryDriver(),)}


def driver_for(name: str) -> Driver:
    """The driver of that name; DriverError "driver_unknown" if there is none."""
    try:
        return DRIVERS[name]
    except KeyError:
        raise DriverError(
            "driver_unknown",
            f"There is no driver named {name[:100]!a}; "
            f"set the cluster's driver to one of: {', '.join(DRIVERS)}.",
        ) from None
