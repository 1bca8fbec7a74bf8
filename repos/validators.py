"""What the fields of the models may hold, as Django validators.

Each takes the field's value, of whatever JSON type it came in, and raises ValidationError with the rule and,
inside lists and objects, the place (`targets[1].cluster_selector.matchLabels`). Values are never repeated in
a message. An empty text is refused where a name is meant; Django and REST framework don't ask a validator
about an optional field left empty.
"""

import re
import unicodedata
from typing import NoReturn

from cryptography.x509 import load_pem_x509_certificates
from django.core.exceptions import ValidationError

from fleetsync.durations import parse_duration
from repos.semver import parse_semver_range
from repos.urls import parse_git_url

MAX_NAME_LENGTH = 63
MAX_REF_LENGTH = 255
MAX_PATHS = 100
MAX_PATH_LENGTH = 1024
MAX_WILDCARDS = 16
MAX_DOUBLE_STARS = 4
MAX_TARGETS = 100
MAX_LABELS = 64
MAX_EXPRESSIONS = 64
MAX_EXPRESSION_VALUES = 64
MAX_CA_BUNDLE_BYTES = 64 * 1024
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")

_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_WILDCARD = re.compile(r"\*+|\?|\[")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Code points that HFS+ leaves out when it compares names: `.g\u200cit` is `.git` there. From git's utf8.c.
_HFS_IGNORED = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])


def validate_url(text: object) -> None:
    """A URL that git may be given: see `repos.urls.parse_git_url`."""
    parse_git_url(text)  # type: ignore[arg-type]  # it refuses what is no text


def validate_name(text: object) -> None:
    """A DNS-1123 name of at most 63 characters."""
    _name(text, "")


def _name(text: object, place: str) -> None:
    if not isinstance(text, str) or len(text) > MAX_NAME_LENGTH or not _DNS_NAME.fullmatch(text):
        _refuse(
            f"A name has at most {MAX_NAME_LENGTH} characters: lower-case letters, digits, - and ., "
            "beginning and ending with a letter or digit, also around each dot.",
            "name",
            place,
        )


def validate_ref(text: object) -> None:
    """A branch or tag, without refs/heads/ or refs/tags/: git-check-ref-format's rules, and a few that are
    ours.

    Ours: at most 255 characters; not `@`, `HEAD` or a name below `refs/`, which git would let stand for
    something else.
    """
    if not isinstance(text, str) or not text:
        _refuse("Give the name of a branch or tag as text.", "ref")
    if len(text) > MAX_REF_LENGTH:
        _refuse(f"The name of a branch or tag has at most {MAX_REF_LENGTH} characters.", "ref")
    if any(c <= " " or c == "\x7f" or c in "~^:?*[\\" or "\ud800" <= c <= "\udfff" for c in text):
        _refuse(
            "The name of a branch or tag has no space, no control character and none of ~ ^ : ? * [ "
            "\\ in it. Give one name, not a pattern, a refspec or an expression.",
            "ref",
        )
    if text.startswith("-"):
        _refuse("The name of a branch or tag does not begin with -.", "ref")
    if ".." in text or "@{" in text or text.endswith(".") or text == "@":
        _refuse(
            "The name of a branch or tag has no .. and no @{ in it, does not end with . and is not @ alone.",
            "ref",
        )
    if any(not part or part.startswith(".") or part.endswith(".lock") for part in text.split("/")):
        _refuse(
            "The parts of a branch or tag between slashes are not empty, do not begin with . and do "
            "not end with .lock.",
            "ref",
        )
    if text == "HEAD" or text.startswith("refs/"):
        _refuse(
            "Write the name of the branch or tag alone, without refs/heads/ or refs/tags/, and not HEAD.",
            "ref",
        )


def validate_semver_range(text: object) -> None:
    """A semver range: see `repos.semver.parse_semver_range`."""
    parse_semver_range(text)  # type: ignore[arg-type]  # it refuses what is no text


def validate_commit(text: object) -> None:
    """A full object id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits, not all of them 0."""
    if not isinstance(text, str) or not _COMMIT.fullmatch(text) or not text.strip("0"):
        _refuse("A commit is its full id: 40 or 64 lower-case hexadecimal digits, not all 0.", "commit")


def validate_polling_interval(text: object) -> None:
    """A duration like `15s` or `1h30m`, from 1 s to 366 days; `""`, `0` and `0s` stand for the default."""
    if text == "":
        return
    if not isinstance(text, str) or not text.isascii():
        _refuse("A polling interval is text like 15s or 1h30m.", "interval")
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ValidationError(f"The polling interval is not understood: {error}.", code="interval") from None
    if 0 < seconds < 1:
        _refuse("A polling interval is at least 1s; 0 means the default.", "interval")


def validate_ca_bundle(text: object) -> None:
    """PEM certificates, at most 64 kB; `""` stands for the system's."""
    if text == "":
        return
    try:
        data = text.encode() if isinstance(text, str) else b""
    except UnicodeEncodeError:
        data = b""
    if len(data) > MAX_CA_BUNDLE_BYTES:
        _refuse(f"A CA bundle has at most {MAX_CA_BUNDLE_BYTES} bytes.", "ca_bundle")
    if b"PRIVATE KEY" in data:
        _refuse(
            "A CA bundle has certificates only, and this has a private key in it. Treat that key as known.",
            "ca_bundle",
        )
    try:
        certificates = load_pem_x509_certificates(data)
    except ValueError:
        certificates = []
    if not certificates:
        _refuse(
            "A CA bundle is text of PEM certificates, each from -----BEGIN CERTIFICATE----- to its END line.",
            "ca_bundle",
        )


# -- paths ---------------------------------------------------------------------------------------------------


def validate_paths(paths: object) -> None:
    """At most 100 globs below the root of the repository, like `deploy`, `charts/*` and `apps/**/prod`.

    `.` and the empty list are the whole tree. Only one spelling of each path is taken: no leading or trailing
    slash, no `./`. Wildcards are bounded, so that a pattern can't be made to backtrack.
    """
    if not isinstance(paths, list):
        _refuse("paths is a list of texts.", "paths")
    if len(paths) > MAX_PATHS:
        _refuse(f"paths has at most {MAX_PATHS} entries.", "paths")
    for index, path in enumerate(paths):
        rule = _broken_path_rule(path)
        if rule:
            _refuse(rule, "path", f"paths[{index}]")


def _broken_path_rule(path: object) -> str:
    """The rule that `path` breaks, or the empty text."""
    if not isinstance(path, str) or not path:
        return "A path is text; write . for the whole tree."
    if len(path) > MAX_PATH_LENGTH:
        return f"A path has at most {MAX_PATH_LENGTH} characters."
    if "\\" in path or any(unicodedata.category(c) in ("Cc", "Cs") for c in path):
        return "A path has no backslash and no control characters; its parts are joined by /."
    if path.startswith("/"):
        return "A path is relative to the root of the repository, without a leading /; write . for the root."
    segments = path.split("/")
    if ".." in segments:
        return "A path has no .. in it: it stays in the repository."
    if path != "." and ("" in segments or "." in segments):
        return "A path is written without ./, // and a trailing /."
    if any(_is_git_folder(segment) for segment in segments):
        return "A path does not lead into .git, however that is spelled."
    return _broken_glob_rule(segments)


def _broken_glob_rule(segments: list[str]) -> str:
    wildcards = sum(len(_WILDCARD.findall(segment)) for segment in segments)
    if wildcards > MAX_WILDCARDS or segments.count("**") > MAX_DOUBLE_STARS:
        return f"A path has at most {MAX_WILDCARDS} wildcards, and at most {MAX_DOUBLE_STARS} parts that are **."
    if any("[" in segment and "]" not in segment[segment.index("[") + 2 :] for segment in segments):
        return "A [ in a path begins a set of characters that a ] must end."
    return ""


def _is_git_folder(segment: str) -> bool:
    """Whether some file system takes `segment` for `.git`: git's is_ntfs_dotgit and is_hfs_dotgit."""
    plain = segment.translate(_HFS_IGNORED).casefold()
    return plain.partition(":")[0].rstrip(" .") in (".git", "git~1")


# -- labels and selectors ------------------------------------------------------------------------------------


def validate_labels(labels: object) -> None:
    """Labels by Kubernetes' rules, at most 64: `{"env": "prod", "example.com/team": "shop"}`."""
    _labels(labels, "")


def validate_selector(selector: object) -> None:
    """A Kubernetes LabelSelector; `{}` selects everything.

    `{"matchLabels": {"env": "prod"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a",
    "b"]}]}`, with the operators In, NotIn, Exists and DoesNotExist.
    """
    _selector(selector, "")


def _labels(labels: object, place: str) -> None:
    if not isinstance(labels, dict):
        _refuse("Labels are an object of texts.", "labels", place)
    if len(labels) > MAX_LABELS:
        _refuse(f"There are at most {MAX_LABELS} labels.", "labels", place)
    for key, value in labels.items():
        _label_key(key, place)
        _label_value(value, place)


def _selector(selector: object, place: str) -> None:
    if not isinstance(selector, dict):
        _refuse("A selector is an object with matchLabels, matchExpressions or both.", "selector", place)
    _known_keys(selector, ("matchLabels", "matchExpressions"), "selector", place)
    if "matchLabels" in selector:
        _labels(selector["matchLabels"], _below(place, "matchLabels"))
    if "matchExpressions" in selector:
        expressions, place = selector["matchExpressions"], _below(place, "matchExpressions")
        if not isinstance(expressions, list) or len(expressions) > MAX_EXPRESSIONS:
            _refuse(f"This is a list of at most {MAX_EXPRESSIONS} objects.", "selector", place)
        for index, expression in enumerate(expressions):
            _expression(expression, f"{place}[{index}]")


def _expression(expression: object, place: str) -> None:
    if not isinstance(expression, dict):
        _refuse("An expression is an object with key, operator and values.", "selector", place)
    _known_keys(expression, ("key", "operator", "values"), "selector", place)
    _label_key(expression.get("key"), place)
    operator, values = expression.get("operator"), expression.get("values", [])
    if operator not in OPERATORS:
        _refuse(f"operator is one of {', '.join(OPERATORS)}.", "selector", place)
    if not isinstance(values, list) or len(values) > MAX_EXPRESSION_VALUES:
        _refuse(f"values is a list of at most {MAX_EXPRESSION_VALUES} texts.", "selector", place)
    if bool(values) != (operator in ("In", "NotIn")):
        _refuse("In and NotIn need values; Exists and DoesNotExist have none.", "selector", place)
    for value in values:
        _label_value(value, place)


def _label_key(key: object, place: str) -> None:
    prefix, slash, name = key.rpartition("/") if isinstance(key, str) else ("", "", "")
    prefix_is_right = not slash or (len(prefix) <= 253 and _DNS_NAME.fullmatch(prefix))
    if not prefix_is_right or len(name) > 63 or not _LABEL_NAME.fullmatch(name):
        _refuse(
            "A label's key is a name of at most 63 letters, digits, -, _ and ., beginning and ending "
            "with a letter or digit; before it may stand a DNS name and a slash.",
            "label",
            place,
        )


def _label_value(value: object, place: str) -> None:
    if not isinstance(value, str) or len(value) > 63 or not (value == "" or _LABEL_NAME.fullmatch(value)):
        _refuse(
            "A label's value is text of at most 63 letters, digits, -, _ and ., beginning and ending "
            "with a letter or digit. Put numbers and true or false in quotes.",
            "label",
            place,
        )


# -- targets -------------------------------------------------------------------------------------------------


def validate_targets(targets: object) -> None:
    """At most 100 objects, each with `cluster`, `cluster_selector` or `cluster_group` or several; `[]` is no
    target."""
    if not isinstance(targets, list):
        _refuse("targets is a list of objects.", "targets")
    if len(targets) > MAX_TARGETS:
        _refuse(f"targets has at most {MAX_TARGETS} entries.", "targets")
    for index, target in enumerate(targets):
        _target(target, f"targets[{index}]")


def _target(target: object, place: str) -> None:
    if not isinstance(target, dict):
        _refuse("A target is an object with cluster, cluster_selector or cluster_group.", "targets", place)
    if "cluster_group_selector" in target:
        _refuse(
            "cluster_group_selector is not supported. Name the group in cluster_group, or use cluster_selector.",
            "targets",
            place,
        )
    _known_keys(target, ("cluster", "cluster_selector", "cluster_group"), "targets", place)
    if not target:
        _refuse(
            "A target needs cluster, cluster_selector or cluster_group. For every cluster, give a "
            "cluster_selector of {}.",
            "targets",
            place,
        )
    for key in ("cluster", "cluster_group"):
        if key in target:
            _name(target[key], _below(place, key))
    if "cluster_selector" in target:
        _selector(target["cluster_selector"], _below(place, "cluster_selector"))


# -- helpers -------------------------------------------------------------------------------------------------


def _refuse(message: str, code: str, place: str = "") -> NoReturn:
    raise ValidationError(f"{place}: {message}" if place else message, code=code)


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _known_keys(value: dict[object, object], known: tuple[str, ...], code: str, place: str) -> None:
    unknown = [key for key in value if key not in known]
    if unknown:
        _refuse(f"{shown(unknown[0])} is not known here; known are {', '.join(known)}.", code, place)


def shown(key: object) -> str:
    """A key that somebody sent, safe to show: escaped and cut to length."""
    text = ascii(key)
    return text if len(text) <= 60 else f"{text[:56]}..."
