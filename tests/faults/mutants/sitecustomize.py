"""Read by every Python that has this folder on its PYTHONPATH: changes the source of a module as it is imported.

FLEETSYNC_MUTANT names an entry of mutants.json: [[module, old text, new text], …]. The program itself has no switch that
would drop a safety; an entry whose old text is not there exactly once stops the import, and so the test that meant it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType


class Loader(importlib.machinery.SourceFileLoader):
    changes: list[tuple[str, str]]

    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the changed source, past every cache."""
        source = self.get_data(self.path).decode()
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ImportError(f"the mutant's text is {source.count(old)} times in {fullname}: {old}")
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, changes: list[list[str]]) -> None:
        self.changes = changes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        mine = [(old, new) for module, old, new in self.changes if module == fullname]
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if mine else None
        if spec is None or spec.origin is None:
            return None
        loader = Loader(fullname, spec.origin)
        loader.changes = mine
        spec.loader = loader
        return spec


if _name := os.environ.get("FLEETSYNC_MUTANT"):
    _changes = json.loads((Path(__file__).parent / "mutants.json").read_text())[_name]
    sys.meta_path.insert(0, Finder(_changes))
