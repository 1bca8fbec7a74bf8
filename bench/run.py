"""Every question of the benchmark, one after the other.

    python -m bench.run [--readme] [QUESTION …]

Ends with status 1 if a requirement of any of them fell short, or one of them failed. `--readme` then puts the tables that
lie in bench/out/ into README.md, between `<!-- bench:QUESTION -->` and `<!-- /bench:QUESTION -->`, and the pictures into
docs/bench/.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.frame import OUT

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ("poll_cost", "fetch", "push_to_applied", "registration", "fleet", "scale_out")


def run(question: str) -> bool:
    print(f"== {question}", flush=True)
    return subprocess.run([sys.executable, "-m", f"bench.{question}"], cwd=ROOT, check=False).returncode == 0


def put_into_readme() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for found in sorted(OUT.glob("*.md")):
        name = found.stem
        block = found.read_text()
        drawn = found.with_suffix(".svg")
        if drawn.exists():
            folder = ROOT / "docs" / "bench"
            folder.mkdir(exist_ok=True)
            shutil.copy(drawn, folder / drawn.name)
            block = f"![{name}](docs/bench/{drawn.name})\n\n{block}"
        marks = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        text, count = marks.subn(lambda m, block=block: f"{m[1]}\n{block}\n{m[2]}", text)  # type: ignore[misc]
        print(f"{name}: {'written' if count else 'no marks in README.md'}")
    readme.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}. There are: {', '.join(QUESTIONS)}")
    failed = [question for question in options.questions or QUESTIONS if not run(question)]
    if options.readme:
        put_into_readme()
    if failed:
        print(f"short or failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
