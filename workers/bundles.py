"""The bundles of this installation: made by sync jobs, opened by deliveries and probes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from django.conf import settings

from repos.retention import touch_bundle
from workers.bundle.errors import BundleCorrupt, BundleMissing
from workers.bundle.store import BundleStore
from workers.content import Bundle, BundleUnavailable


@cache
def store() -> BundleStore:
    return BundleStore(settings.BUNDLE_DIR)


@contextmanager
def open_bundle(sha256: str) -> Iterator[Bundle]:
    """A stored bundle, checked and marked as in use; BundleUnavailable if it has to be made again."""
    touch_bundle(sha256)
    try:
        with store().open_bundle(sha256) as found:
            yield found
    except (BundleMissing, BundleCorrupt) as error:
        raise BundleUnavailable(str(error)) from error
