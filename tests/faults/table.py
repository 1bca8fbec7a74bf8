"""The table of faults: each entry is one function that does the harm and undoes it, and what is special about judging it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.judge import Report
from tests.faults.world import World

BOTH = ("sqlite", "postgresql")
Inject = Callable[[World, Report], None]


@dataclass(frozen=True)
class Fault:
    """`clock` and `woken` are judge()'s. `needs` says why a machine cannot have the fault, or ""."""

    name: str
    inject: Inject
    databases: tuple[str, ...] = BOTH
    clock: bool = False
    woken: bool = False
    needs: Callable[[], str] = lambda: ""


FAULTS: dict[str, Fault] = {}


def fault(
    *,
    databases: tuple[str, ...] = BOTH,
    clock: bool = False,
    woken: bool = False,
    needs: Callable[[], str] = lambda: "",
) -> Callable[[Inject], Inject]:
    """Enter the decorated function into the table under its name."""

    def enter(inject: Inject) -> Inject:
        add(Fault(inject.__name__, inject, databases, clock, woken, needs))
        return inject

    return enter


def add(entry: Fault) -> None:
    assert entry.name not in FAULTS, entry.name
    FAULTS[entry.name] = entry
