"""Delivery into a folder that the worker can write: a whole release aside, then one atomic switch.

Settings: {"path": "/abs", "keep_releases": 3}. Below the path:

    <gitrepo name>                          a link to .fleetsync/<uuid>; users read <gitrepo name>/current/...
    .fleetsync/<uuid>/current               a link to releases/<bundle sha256>
    .fleetsync/<uuid>/releases/<sha256>/    the files; <sha256>-2 where one of that name was found damaged
    .fleetsync/<uuid>/state.json            what was delivered last; kept after a removal
    .fleetsync/<uuid>.lock                  held while anything about that GitRepo is compared or changed
    .fleetsync/name-<hash>.lock             held for the moment in which the link of that name is decided

The steps of an apply, each one durable before the next; killed between any two, the target has the old
content or the new one, whole, and the next apply cleans up and goes on:

    1. compare the order              4. the link current
    2. unpack aside, then rename      5. the link of the name
    3. state.json                     6. prune

The state goes before the switch, so that a stale worker finds the newer order even if the newer worker died
between.

Two GitRepos can meet at one name when one was deleted and registered again. The name belongs to the one
with the higher *claim*, which is the instant of its registration; an owner that was removed, or has no
state, gives way to anybody. So whatever order their applies and removals come in, and however often, the
later one ends with the name. The one exception: an epoch that rises says that the database was restored and
is right again, so that apply's claim is lifted just above the present owner's.
"""

import math

from fleetsync.failpoints import hit
from workers.content import Bundle
from workers.deliver.drivers.base import Applied, Deadline, Order, Plan, Target, TargetAhead
from workers.deliver.drivers.directory_place import Place, find_place, open_place
from workers.deliver.drivers.directory_state import State, bundle_of, check_bundle_name
from workers.deliver.drivers.tree import compare, unpack


class DirectoryDriver:
    """See the module; ``below`` is the folder that no target may leave, "" for none."""

    name = "directory"

    def __init__(self, below: str = "") -> None:
        self._below = below

    def plan(self, target: Target, bundle: Bundle, *, deadline: float) -> Plan:
        """What ``apply`` would change of what users see now, what was put there by hand included."""
        clock = Deadline(deadline)
        with find_place(target, clock, self._below) as place:
            if place is None:
                return compare(bundle, None, clock).plan()
            with place.opened_release(place.current()) as release:
                return compare(bundle, release, clock).plan()

    def apply(self, target: Target, bundle: Bundle, order: Order, *, deadline: float) -> None:
        """The steps in the module's text. The same order again repairs what was changed by hand."""
        clock = Deadline(deadline)
        check_bundle_name(bundle.sha256)
        with open_place(target, clock, self._below) as place:
            state = place.state()
            _compare_order(target, state, order, bundle.sha256)
            claim = _claim(place, state, order)
            place.take_name(claim, only_check=True)
            place.check_current()
            place.sweep()
            release = _find_intact(place, bundle, clock) or _unpack(place, bundle, clock)
            clock.check()  # a worker that was frozen until now gives up; from here on it goes through
            history = _history(place, state, release)
            place.write_state(State(order, bundle.sha256, target.gitrepo_name, False, claim, history))
            hit("directory.switch", target.gitrepo_name)
            place.switch(release)
            place.take_name(claim)
            if state and state.gitrepo != target.gitrepo_name:
                place.drop_name(state.gitrepo)
            place.prune(history)

    def verify(self, target: Target, bundle: Bundle, *, deadline: float) -> bool:
        """Whether users who read <name>/current see the bundle: names, kinds, modes and bytes."""
        clock = Deadline(deadline)
        with find_place(target, clock, self._below) as place:
            if place is None or not place.has_name():
                return False
            with place.opened_release(place.current()) as release:
                return release is not None and compare(bundle, release, clock).nothing

    def remove(self, target: Target, order: Order, *, deadline: float) -> None:
        """Unlink what users see, then delete the releases. The order is kept, even where nothing was."""
        clock = Deadline(deadline)
        with open_place(target, clock, self._below) as place:
            state = place.state()
            _compare_order(target, state, order, "")
            place.sweep()
            clock.check()
            claim = state.claim if state else target.gitrepo_created
            place.write_state(State(order, "", target.gitrepo_name, True, claim, ()))
            for name in {target.gitrepo_name, state.gitrepo if state else target.gitrepo_name}:
                place.drop_name(name)
            place.drop_current()
            place.prune(())

    def applied(self, target: Target, *, deadline: float) -> Applied | None:
        """What state.json says. Asked without the lock, so that a frozen worker can't keep it from us."""
        with find_place(target, Deadline(deadline), self._below, lock=False) as place:
            state = place.state() if place else None
            if place is None or state is None:
                return None
            current = place.current()
            if state.removed:
                complete = current is None and not place.has_name()
            else:
                complete = current is not None and bundle_of(current) == state.bundle and place.has_name()
            return Applied(state.order, state.bundle, complete)


def _compare_order(target: Target, state: State | None, order: Order, bundle: str) -> None:
    """Raise TargetAhead unless ``order`` is newer than the target's, or equals it and means the same."""
    if state is None or order > state.order or (order == state.order and bundle == state.bundle):
        return
    has, asked = state.order, order
    raise TargetAhead(
        state.order,
        f"Cluster {target.cluster} has delivery {has.epoch}.{has.sequence} of GitRepo {target.gitrepo_name} "
        f"and was asked for {asked.epoch}.{asked.sequence}; nothing was changed. "
        "Sync again if this doesn't end by itself.",
    )


def _claim(place: Place, state: State | None, order: Order) -> float:
    """The claim to the name with which this apply goes; see the module."""
    claim = place.target.gitrepo_created
    if state is None:
        return claim
    claim = max(claim, state.claim)
    rival = place.rival_claim() if order.epoch > state.order.epoch else None
    return claim if rival is None else max(claim, math.nextafter(rival, math.inf))


def _find_intact(place: Place, bundle: Bundle, clock: Deadline) -> str | None:
    """A release that is the bundle already. An edited one is left to prune: readers may be in it."""
    for name in place.releases_of(bundle.sha256):
        with place.opened_release(name) as release:
            if release is not None and compare(bundle, release, clock).nothing:
                return name
    return None


def _unpack(place: Place, bundle: Bundle, clock: Deadline) -> str:
    with place.new_release(bundle.sha256) as (name, release):
        unpack(bundle, release, clock)
    return name


def _history(place: Place, state: State | None, release: str) -> tuple[str, ...]:
    """The releases to keep, this one first; of one bundle only one, for the others were found damaged."""
    before = state.history if state else ()
    others = [name for name in before if bundle_of(name) != bundle_of(release)]
    return (release, *others[: place.keep - 1])
