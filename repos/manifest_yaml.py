"""YAML as JSON would allow it, from somebody who may mean harm.

A first pass over the parser's events refuses what could grow (aliases, nesting, size) or call code (tags),
before anything is built. Numbers, true, false and null are read; dates stay text, as they do in Kubernetes.
"""

import re
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from django.core.exceptions import ValidationError

from repos.validators import shown

if TYPE_CHECKING:
    from yaml import CSafeLoader as _YamlLoader
else:
    # libyaml reads some forty times as fast; a PyYAML that was built without it reads the same.
    _YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_BYTES = 1024 * 1024
MAX_NESTING = 32
MAX_DOCUMENTS = 1000
# A megabyte of `[a,a,a,` is half a million nodes, which take ten seconds to build.
MAX_NODES = 50_000


class _Loader(_YamlLoader):
    """Builds dicts, lists, text, bool, int, float and None, from documents that `_check` let through."""

    # Own copies: PyYAML's resolvers read 1:30 as 90 and 2001-01-01 as a date, and fall over 0x_.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dict whose keys are text, each there once. Raises ConstructorError."""
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = "is not text" if not isinstance(key, str) else "is there twice" if key in result else ""
            if problem:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key)} {problem}", key_node.start_mark
                )
            result[key] = self.construct_object(value_node, deep=deep)
        return result


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"(?i:yes|no|true|false|on|off)", list("yYnNtTfFoO")),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,18})", list("-+0123456789")),
    ("float", r"[-+]?[0-9]{1,18}\.[0-9]{0,18}(?:[eE][-+][0-9]{1,3})?", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def read_documents(data: str | bytes) -> list[tuple[int, object]]:
    """The documents of `data`, numbered from 1, without the empty ones, which a `---` too many makes.

    Raises ValidationError if anything in the text is not allowed or is no YAML.
    """
    text = _decoded(data)
    _check(text)
    documents: list[object] = []
    try:
        documents.extend(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        _refuse_yaml(error, len(documents) + 1)
    return [(number, content) for number, content in enumerate(documents, 1) if content is not None]


def _decoded(data: object) -> str:
    if not isinstance(data, str | bytes):
        _refuse("Give the manifests as text.")
    try:
        raw = data.encode() if isinstance(data, str) else data
        if len(raw) > MAX_BYTES:
            _refuse(f"The text has at most {MAX_BYTES} bytes. Split it.")
        return raw.decode("utf-8-sig")
    except UnicodeError:
        _refuse("The text is not in UTF-8.")


def _check(text: str) -> None:
    number = nesting = nodes = 0
    try:
        for event in yaml.parse(text, Loader=_YamlLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                number += 1
                if number > MAX_DOCUMENTS:
                    _refuse(f"There are more than {MAX_DOCUMENTS} documents in the text. Split it.")
            elif isinstance(event, yaml.CollectionStartEvent):
                nesting += 1
                if nesting > MAX_NESTING:
                    _refuse(f"document {number}: It is nested more than {MAX_NESTING} deep.")
            elif isinstance(event, yaml.CollectionEndEvent):
                nesting -= 1
            if isinstance(event, yaml.NodeEvent):
                nodes += 1
                if nodes > MAX_NODES:
                    _refuse(f"There are more than {MAX_NODES} keys and values in the text. Split it.")
                _check_node(event, number)
    except yaml.YAMLError as error:
        _refuse_yaml(error, number)


def _check_node(event: yaml.NodeEvent, number: int) -> None:
    line = f"line {event.start_mark.line + 1}" if event.start_mark else "some line"
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        _refuse(f"document {number}: {line}: Anchors and aliases (&name, *name) are not read. Write the value out.")
    if getattr(event, "tag", None) is not None:
        _refuse(f"document {number}: {line}: Tags (!name) are not read. Remove it.")


def _refuse_yaml(error: yaml.YAMLError, number: int) -> NoReturn:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = problem or "there is a character that YAML does not allow"
    _refuse(f"document {max(number, 1)}: This is no YAML that is read here: {where}{problem}.")


def _refuse(message: str) -> NoReturn:
    raise ValidationError(message, code="manifest")
