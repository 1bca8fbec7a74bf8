"""The frame of a question: its options, its tables, its requirements, and what is left behind in bench/out/.

A question is one module of this package, named in `bench/run.py: QUESTIONS`, that runs by itself:

    def main() -> int:
        options = frame.options(__doc__)                # --size small|full, --rounds N
        report = Report("fetch", "What a fetch costs", "python -m bench.fetch", options)
        found = interleaved({"ours": ours, "plain git": plain}, options.rounds)      # bench/measuring.py
        table = report.table("Small repository", "way", "ms", "disk MB")
        for name, samples in found.items():
            table.row(name, spread([s.milliseconds for s in samples]), spread([s.disk_mb for s in samples]))
        report.require("fetch, ours/plain git, time", 0.4, at_most=0.5)
        report.bars("Milliseconds a fetch", {"ours": 12.0, "plain git": 31.0})
        return report.finish()

    if __name__ == "__main__":
        sys.exit(main())

Rules that all keep: everything that is compared runs in the same run, in interleaved rounds; what is compared is a median;
the client's CPU is told apart from the server's; what can't be measured here is skipped with a reason, never left out; the
settings that were raised are printed as notes. Servers listen on 127.0.0.0/8 alone, files lie in temporary folders.
`finish()` prints all of it, writes `bench/out/QUESTION.json`, `.md` and `.svg`, and answers the exit status: 1 if a
requirement fell short. One that was not measured is marked and does not count.
"""

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench.measuring import machine, one_line
from bench.picture import Bars, picture

OUT = Path(__file__).resolve().parent / "out"
Size = Literal["small", "full"]
ROUNDS: Mapping[Size, int] = {"small": 3, "full": 5}


@dataclass(frozen=True, slots=True)
class Options:
    """`small` is for a quick look: the same cases, fewer of everything."""

    size: Size
    rounds: int

    @property
    def small(self) -> bool:
        return self.size == "small"


def options(doc: str | None, arguments: Sequence[str] | None = None) -> Options:
    """From the command line; SIZE in the environment is the default, as `make bench SIZE=small` sets it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default=os.environ.get("SIZE") or "full")
    parser.add_argument("--rounds", type=int, default=0, help="of each case, interleaved")
    found = parser.parse_args(arguments)
    size: Size = "small" if found.size == "small" else "full"
    return Options(size, found.rounds or ROUNDS[size])


@dataclass(frozen=True, slots=True)
class Spread:
    """Some measured values: what is shown is their median."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return number(self.median)


def spread(values: Sequence[float]) -> Spread:
    return Spread(tuple(values))


Cell = str | float | int | Spread | None


def number(value: float) -> str:
    """Three significant digits, thousands divided."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.01 else f"{value:.2g}"


def shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, int | float):
        return number(cell)
    return str(cell)


@dataclass
class Table:
    """Rows of cells under `columns`; the first column is a name."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)

    def row(self, *cells: Cell) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: {len(cells)} cells under {len(self.columns)} columns")
        self.rows.append(cells)

    def text(self) -> str:
        lines = [list(self.columns), *([shown(c) for c in row] for row in self.rows)]
        widths = [max(len(line[n]) for line in lines) for n in range(len(self.columns))]
        return "\n".join(
            "  ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        )

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *([*map(shown, r)] for r in self.rows)]
        return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A number that must be reached: `value` at most, or at least, `bound`. Without a value: why it was `not_measured`."""

    what: str
    value: float | None
    bound: float
    unit: str = ""
    at_least: bool = False
    not_measured: str = ""

    @property
    def held(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def verdict(self) -> str:
        if self.held is None:
            return f"not measured: {self.not_measured}"
        return "held" if self.held else "SHORT"


class Report:
    """What one question found."""

    def __init__(self, question: str, title: str, command: str, options: Options) -> None:
        self.question, self.title, self.command, self.options = question, title, command, options
        self.began = datetime.now(UTC)
        self.machine = machine()
        self.tables: list[Table] = []
        self.requirements: list[Requirement] = []
        self.notes: list[str] = []
        self.charts: list[Bars] = []

    def table(self, title: str, *columns: str) -> Table:
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def note(self, text: str) -> None:
        """A sentence below the tables: what was skipped and why, which settings were raised."""
        self.notes.append(text)

    def require(
        self,
        what: str,
        value: float | None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        unit: str = "",
        not_measured: str = "no value",
    ) -> None:
        """A row of the table of requirements, with exactly one bound."""
        if (at_most is None) == (at_least is None):
            raise ValueError(f"{what}: one bound, at_most or at_least")
        bound = at_least if at_most is None else at_most
        assert bound is not None
        self.requirements.append(Requirement(what, value, bound, unit, at_least is not None, not_measured))

    def bars(self, title: str, values: Mapping[str, float]) -> None:
        """A part of the picture: a bar for each name, on a logarithmic scale. Values above 0."""
        self.charts.append(Bars(title, dict(values)))

    @property
    def subtitle(self) -> str:
        size = ", small sizes" if self.options.small else ""
        return f"{self.began:%Y-%m-%d}, {one_line(self.machine)}{size}"

    def _requirements(self) -> Table:
        table = Table("Requirements", ("what", "value", "bound", ""))
        for r in self.requirements:
            sign = "≥" if r.at_least else "≤"
            table.row(r.what, _valued(r.value, r.unit), f"{sign} {_valued(r.bound, r.unit)}", r.verdict)
        return table

    def _all_tables(self) -> list[Table]:
        return [*self.tables, *([self._requirements()] if self.requirements else [])]

    def text(self) -> str:
        parts = [f"{self.title}\n{self.subtitle}"]
        parts += [f"{table.title}\n{table.text()}" for table in self._all_tables()]
        parts += ["\n".join(self.notes)] if self.notes else []
        return "\n\n".join(parts)

    def markdown(self) -> str:
        parts = [f"**{self.title}** ({self.subtitle}; `{self.command}`)"]
        parts += [f"{table.title}:\n\n{table.markdown()}" for table in self._all_tables()]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts) + "\n"

    def data(self) -> dict[str, object]:
        return {
            "question": self.question,
            "title": self.title,
            "command": self.command,
            "began": self.began.isoformat(),
            "options": asdict(self.options),
            "machine": self.machine,
            "tables": [
                {"title": t.title, "columns": t.columns, "rows": [[*map(_plain, row)] for row in t.rows]}
                for t in self.tables
            ],
            "requirements": [asdict(r) | {"held": r.held} for r in self.requirements],
            "notes": self.notes,
        }

    def finish(self) -> int:
        """Print, write, and answer the exit status."""
        OUT.mkdir(exist_ok=True)
        base = OUT / self.question
        base.with_suffix(".json").write_text(json.dumps(self.data(), indent=1) + "\n")
        base.with_suffix(".md").write_text(self.markdown())
        if self.charts:
            base.with_suffix(".svg").write_text(picture(self.title, self.subtitle, self.charts))
        print(self.text(), flush=True)
        short = [r.what for r in self.requirements if r.held is False]
        if short:
            print(f"\n{len(short)} short: {'; '.join(short)}", flush=True)
        return 1 if short else 0


def _valued(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{number(value)} {unit}".rstrip()


def _plain(cell: Cell) -> object:
    return {"median": cell.median, "values": cell.values} if isinstance(cell, Spread) else cell
