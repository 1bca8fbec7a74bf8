"""`manage.py doctor [--deep]`: is every promise kept, and if not, what is wrong, where, and what to do?"""

import json
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError, InterfaceError

from fleetsync.durations import parse_duration
from repos.doctor.deep import Examination
from repos.doctor.examination import examine
from repos.doctor.facts import see_repairs
from repos.doctor.finding import ERROR, Finding, Report

WELL, ILL, UNKNOWN = 0, 1, 2


def duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


class Command(BaseCommand):
    help = (
        "Examines whether every promise is kept: by the database alone, or with --deep by asking remotes, targets and "
        "machines through the workers. Ends with 0 if there is no error, with 1 if there is one, with 2 if it could not "
        "be examined. docs/operations.md says what each finding means."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--deep", action="store_true", help="ask remotes, targets and machines as well")
        parser.add_argument(
            "--timeout",
            type=duration,
            default=60.0,
            metavar="60s",
            help="how long to wait for their answers, as in 60s or 5m",
        )
        parser.add_argument("--json", action="store_true", help="print JSON, as GET /api/v1/doctor/ answers it")
        parser.add_argument(
            "--seen-repairs", action="store_true", help="take the repairs of until now as seen, and examine nothing"
        )

    def handle(self, *_: Any, deep: bool, timeout: float, json: bool, seen_repairs: bool, **__: Any) -> None:
        try:
            if seen_repairs:
                self.stdout.write(f"{see_repairs()} kinds of repairs are taken as seen")
                return
            report = Examination(timeout, self.progress).run() if deep else examine()
        except (DatabaseError, InterfaceError) as error:
            self.stderr.write(f"The database does not answer, so nothing is known: {str(error)[:300]}")
            raise SystemExit(UNKNOWN) from error
        self.stdout.write(as_json(report) if json else as_text(report))
        if code := exit_code(report):
            raise SystemExit(code)

    def progress(self, sentence: str) -> None:
        self.stderr.write(sentence)
        self.stderr.flush()


def exit_code(report: Report) -> int:
    """2 if the only errors are questions that nobody answered: it could not be examined. Pure."""
    if report.healthy:
        return WELL
    errors = {finding.kind for finding in report.findings if finding.severity == ERROR}
    return UNKNOWN if errors == {"unanswered"} else ILL


def as_json(report: Report) -> str:
    return json.dumps(report.as_json(), indent=2)


def as_text(report: Report) -> str:
    """Each finding in three lines, the errors first, then how many there are."""
    blocks = [said(finding) for finding in report.findings]
    more = sum(report.totals.values()) - sum(finding.count for finding in report.findings)
    if more > 0:
        blocks.append(f"… and {more} more of the same kinds")
    if report.errors:
        end = f"{report.errors} errors and {report.warnings} warnings."
    elif report.warnings:
        end = f"Every promise is kept. {report.warnings} warnings: what fails outside is shown and tried again."
    else:
        end = "Every promise is kept, and nothing fails."
    return "\n\n".join([*blocks, end])


def said(finding: Finding) -> str:
    head = f"{finding.severity.upper()} {finding.kind}: {finding.subject}"
    return f"{head}\n  {finding.message}\n  To do: {finding.advice}"
