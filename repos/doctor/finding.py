"""What the doctor says: findings, and the list of everything that it can find."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

ERROR = "error"
WARNING = "warning"

# How many findings of one kind are told one by one; the rest is counted.
EXAMPLES = 100

# Every kind in the order in which it is told, with what it means. docs/operations.md says what to do; a test holds the
# two together.
KINDS: Mapping[str, str] = {
    "overdue": "work is due, and nobody has taken it for longer than healthy workers need",
    "expired-lease": "a worker went away with work in hand, and nobody has taken the work over",
    "unscheduled": "work that should happen has no instant at which it is due",
    "beyond-horizon": "an instant lies further ahead than anything sets it",
    "not-newest": "what a remote or an edit asked for has not become the newest revision",
    "ledger": "the ledger contradicts the jobs or deliveries that it tells of",
    "failed-without-cause": "a failure without a cause, or without a next try",
    "wrong-content": "a delivery wants or has something else than it should",
    "repairs": "the resync had to repair what no rule allows",
    "failing": "something outside fails; it is shown, and tried again",
    "held": "a delivery waits for somebody's approval",
    "crashed": "work whose workers died more than once in a row",
    "broker": "Redis is away, unsafe, or not emptied",
    "missed": "a remote has a commit that a poll should have brought",
    "behind": "a remote has a commit that its next poll will bring",
    "target-differs": "a target does not have what is recorded as applied",
    "not-removed": "a target still has what is recorded as removed",
    "debris": "a worker's machine keeps what dead processes left",
    "not-asked": "a remote, target or machine could not be asked",
    "unanswered": "no worker answered the doctor's question in time",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `subject` names it as a person would; `message` says what, with numbers; `advice` what to
    do next. `count`: of how many things it tells.
    """

    kind: str
    subject: str
    message: str
    advice: str
    severity: str = ERROR
    count: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What one examination found: at most EXAMPLES findings of a kind, and the totals of all kinds."""

    examined_at: datetime
    findings: tuple[Finding, ...]
    totals: Mapping[str, int]
    errors: int
    deep: bool = False

    @property
    def healthy(self) -> bool:
        """Whether every promise is kept; warnings are facts about the world."""
        return self.errors == 0

    @property
    def warnings(self) -> int:
        return sum(self.totals.values()) - self.errors

    def as_json(self) -> dict[str, Any]:
        return {
            "healthy": self.healthy,
            "deep": self.deep,
            "examined_at": self.examined_at.isoformat(),
            "errors": self.errors,
            "warnings": self.warnings,
            "totals": dict(self.totals),
            "findings": [asdict(finding) for finding in self.findings],
        }


def report_of(findings: Iterable[Finding], examined_at: datetime, *, deep: bool = False) -> Report:
    """Count all `findings` and keep some of each kind, errors first. Pure."""
    totals = dict.fromkeys(KINDS, 0)
    kept: dict[tuple[str, str], list[Finding]] = {}
    errors = 0
    for finding in findings:
        totals[finding.kind] += finding.count
        errors += finding.count if finding.severity == ERROR else 0
        examples = kept.setdefault((finding.kind, finding.severity), [])
        if len(examples) < EXAMPLES:
            examples.append(finding)
    order = {kind: number for number, kind in enumerate(KINDS)}
    told: list[Finding] = []
    for kind in sorted({kind for kind, _ in kept}, key=lambda kind: order[kind]):
        told += [*kept.get((kind, ERROR), []), *kept.get((kind, WARNING), [])][:EXAMPLES]
    told.sort(key=lambda finding: finding.severity != ERROR)
    return Report(examined_at, tuple(told), totals, errors, deep)
