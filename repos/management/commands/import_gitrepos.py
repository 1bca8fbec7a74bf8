"""`manage.py import_gitrepos FILE…`: Fleet's manifests become GitRepos, all of them or none."""

import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError, transaction
from rest_framework import serializers

from repos import registration
from repos.api.serializers import GitRepoSerializer
from repos.manifest_yaml import MAX_BYTES
from repos.manifests import read_manifests
from repos.models import GitRepo


class Command(BaseCommand):
    help = (
        "Registers the GitRepos of Fleet manifests, and edits those that exist already until they are as the manifest "
        "says. If anything in any file is refused, nothing is changed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "files", nargs="+", metavar="FILE", help="YAML with one or more documents; - reads standard input"
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")

    def handle(self, *_: Any, files: list[str], dry_run: bool, **__: Any) -> None:
        specs, errors = read(files)
        lines: list[str] = []
        with transaction.atomic():
            for place, spec in specs:
                try:
                    with transaction.atomic():
                        lines.append(f"{spec['name']}: {apply(spec)}")
                except ValidationError as error:
                    errors += [f"{place}: {sentence}" for sentence in said(error)]
                except serializers.ValidationError as error:
                    errors += [f"{place}: {field}: {said_here}" for field, said_here in flat(error.detail)]
                except IntegrityError:
                    errors.append(f"{place}: somebody registered the same name at this moment: try again")
            if errors or dry_run:
                transaction.set_rollback(True)
        if errors:
            raise CommandError("\n".join([*errors, "Nothing was changed."]))
        for line in lines:
            self.stdout.write(f"{line} (dry run)" if dry_run else line)


def read(files: list[str]) -> tuple[list[tuple[str, Mapping[str, Any]]], list[str]]:
    """The GitRepos of all files, each with the place to name in a refusal, and what is wrong already."""
    specs: list[tuple[str, Mapping[str, Any]]] = []
    errors: list[str] = []
    seen: dict[str, str] = {}
    for file in files:
        try:
            for spec in read_manifests(content(file)):
                name = spec["name"]
                place = f"{file}: {name}"
                if name in seen:
                    errors.append(f"{place}: the name is in {seen[name]} as well")
                seen[name] = file
                specs.append((place, spec))
        except ValidationError as error:
            errors += [f"{file}: {sentence}" for sentence in error.messages]
        except OSError as error:
            errors.append(f"{file}: {error.strerror}")
    return specs, errors


def content(file: str) -> bytes:
    """At most a byte more than a manifest may have, which its reader then refuses."""
    if file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(file).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def apply(spec: Mapping[str, Any]) -> str:
    """Register or edit one GitRepo; what was done, in a word or two."""
    before = GitRepo.objects.alive().select_related("credential").filter(name=spec["name"]).first()
    serializer = GitRepoSerializer(before, data=spec)
    serializer.is_valid(raise_exception=True)
    wanted: dict[str, Any] = dict(serializer.validated_data)
    if before is None:
        registration.register(wanted)
        return "registered"
    # Somebody may have forced a sync since the manifest was written: a lower number asks for nothing.
    wanted["force_sync_generation"] = max(wanted["force_sync_generation"], before.force_sync_generation)
    changed = sorted(name for name, value in wanted.items() if getattr(before, name) != value)
    if not changed:
        return "unchanged"
    registration.edit(before.pk, wanted)
    return f"edited ({', '.join(changed)})"


def said(error: ValidationError) -> list[str]:
    if not hasattr(error, "error_dict"):
        return error.messages
    return [f"{field}: {sentence}" for field, sentences in error.message_dict.items() for sentence in sentences]


def flat(detail: Any) -> list[tuple[str, str]]:
    return [(str(field), str(sentence)) for field, sentences in dict(detail).items() for sentence in sentences]
