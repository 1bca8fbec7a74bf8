"""Bars on a logarithmic scale as SVG, by hand. It brings its own ground, so that it can be read on light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, RIGHT = 940, 340, 90
OURS = ("ours", "fleetsync")
BAR, GAP, HEAD, TOP, FOOT = 18, 8, 34, 62, 14
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .ground { fill: #ffffff; stroke: #d1d9e0; }
  .title { font-size: 17px; font-weight: 600; } .head { font-weight: 600; } .small { font-size: 11px; fill: #59636e; }
  .bar { fill: #8c959f; } .ours { fill: #1a7f37; } .line { stroke: #d1d9e0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .ground { fill: #0d1117; stroke: #3d444d; } .small { fill: #9198a1; }
    .bar { fill: #6e7681; } .ours { fill: #3fb950; } .line { stroke: #3d444d; }
  }
"""


@dataclass(frozen=True, slots=True)
class Bars:
    """Values above 0 by name; names that begin with one of OURS stand out."""

    title: str
    values: dict[str, float]


def picture(title: str, subtitle: str, charts: Sequence[Bars]) -> str:
    """One picture of all `charts`, one below the other."""
    body: list[str] = []
    y = TOP
    for chart in charts:
        lines, y = _chart(chart, y)
        body += lines
    height = y + FOOT
    # The machine's line is long: two lines of it are shown, at the comma nearest to the middle.
    parts = subtitle.split(", ")
    half = (len(parts) + 1) // 2
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            f'<text class="title" x="16" y="28">{escape(title)}</text>',
            f'<text class="small" x="16" y="45">{escape(", ".join(parts[:half]))}</text>',
            f'<text class="small" x="16" y="60">{escape(", ".join(parts[half:]))}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _chart(chart: Bars, y: int) -> tuple[list[str], int]:
    values = {name: value for name, value in chart.values.items() if value > 0}
    lines = [f'<text class="head" x="16" y="{y + HEAD - 10}">{escape(chart.title)}</text>']
    top = y + HEAD
    # From the power of ten below the smallest to the one above the largest; each gets a line.
    low = math.floor(math.log10(min(values.values(), default=1)) - 0.05)
    high = max(math.ceil(math.log10(max(values.values(), default=10))), low + 1)
    bottom = top + len(values) * (BAR + GAP)
    for power in range(low, high + 1):
        x = LABELS + _along(10.0**power, low, high)
        lines.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>')
        lines.append(f'<text class="small" x="{x:.1f}" y="{bottom + 13}" text-anchor="middle">{10.0**power:,g}</text>')
    for n, (name, value) in enumerate(values.items()):
        at = top + n * (BAR + GAP)
        length = _along(value, low, high)
        kind = "ours" if name.startswith(OURS) else "bar"
        lines.append(f'<text x="{LABELS - 8}" y="{at + 14}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect class="{kind}" x="{LABELS}" y="{at}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        lines.append(f'<text x="{LABELS + length + 6:.1f}" y="{at + 14}">{_label(value)}</text>')
    return lines, bottom + 20


def _along(value: float, low: int, high: int) -> float:
    return (math.log10(value) - low) / (high - low) * (WIDTH - LABELS - RIGHT)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
