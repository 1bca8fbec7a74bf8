"""Why content can't be bundled, or a bundle not be read."""
# the names say what is the case, as those of the fetching room do

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class BundleError(Exception):
    """Base. `cause` is stable; `str(error)` is for the user; `local` is whether the fault is on this
    machine.
    """

    cause = "bundle"
    local = False


class NoMatch(BundleError):
    """A path selects nothing, so that a typing error never removes what is deployed."""

    cause = "no-match"


class ContentRefused(BundleError):
    """Something in the tree is not delivered. `path` is its place in the repository, fit to be shown."""

    def __init__(self, cause: str, path: str, sentence: str) -> None:
        super().__init__(f"{path}: {sentence}")
        self.cause = cause
        self.path = path


class LimitExceeded(BundleError):
    """`setting` names what an operator can raise."""

    cause = "limit"

    def __init__(self, setting: str, sentence: str) -> None:
        super().__init__(sentence)
        self.setting = setting


class ContentChanged(BundleError):
    """The object store gave something else than what it listed."""

    cause = "corrupt"
    local = True


class BundleMissing(BundleError):
    cause = "bundle-missing"
    local = True


class BundleCorrupt(BundleError):
    cause = "bundle-corrupt"
    local = True


class StoreFull(BundleError):
    cause = "disk-full"
    local = True


class StoreRefused(BundleError):
    cause = "disk"
    local = True


@contextmanager
def disk_errors() -> Iterator[None]:
    """Say an OSError in the block in this room's words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(
                "There is no space left for bundles. Free some, or give BUNDLE_DIR a bigger disk."
            ) from error
        raise StoreRefused(
            f"The store of bundles can't be used ({error.strerror}). Check BUNDLE_DIR and its rights."
        ) from error
