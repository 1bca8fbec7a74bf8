"""`manage.py rotate_keys [--check]`: every stored secret under the newest of ENCRYPTION_KEYS."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from repos.rotation import Rotation, rotate

CHANGED = "{} were edited at the same moment: run it again to look at them."
UNREADABLE = (
    "No key in ENCRYPTION_KEYS opens the secret of {}. Put the key back that it was written with, at the end of "
    "ENCRYPTION_KEYS, and run this again; if that key is lost, enter the secret again."
)
OLDER = "{} secrets still need an older key: keep it in ENCRYPTION_KEYS, and run rotate_keys."


class Command(BaseCommand):
    help = (
        "Encrypts every stored secret anew with the newest key, the first of ENCRYPTION_KEYS. May be ended and run again at "
        "any time, while everything works. Ends with status 1 if an older key is still needed afterwards."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="only say how many secrets still need an older key")

    def handle(self, *_: Any, check: bool, **__: Any) -> None:
        rotation = rotate(check=check, progress=self.say)
        if check:
            self.stdout.write(f"{rotation.older} of {rotation.seen} secrets need an older key")
        else:
            self.stdout.write(f"{rotation.older} of {rotation.seen} secrets encrypted anew")
        problems = [UNREADABLE.format(name) for name in rotation.unreadable]
        if rotation.changed:
            problems.append(CHANGED.format(rotation.changed))
        if check and rotation.older:
            problems.append(OLDER.format(rotation.older))
        if problems:
            raise CommandError("\n".join(problems))
        self.stdout.write("All are under the newest key: older ones may be taken out of ENCRYPTION_KEYS.")

    def say(self, column: str, rotation: Rotation) -> None:
        self.stderr.write(f"{column}: {rotation.seen} looked at, {rotation.older} under an older key")
