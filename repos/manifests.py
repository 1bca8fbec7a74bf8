"""Fleet's GitRepo manifests: YAML in, the fields of our REST API out.

The names are those of Fleet's GitRepoSpec (pkg/apis/fleet.cattle.io/v1alpha1/gitrepo_types.go). What a
manifest asks for and we lack is refused with its place; nothing is dropped. Two things ask for nothing and
are passed over: what a Kubernetes server writes into an object (`status`, `metadata.uid` and the like), and a
key that we lack whose value is empty, since Go reads and writes that as if the key were not there.
"""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, TypedDict

from django.core.exceptions import ValidationError

from repos import validators
from repos.manifest_yaml import read_documents
from repos.validators import shown

API_VERSION = "fleet.cattle.io/v1alpha1"
MAX_ERRORS = 50

_COMMIT = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
_MAX_INT64 = 2**63 - 1

# Written by the server into what `kubectl get -o yaml` shows.
_SERVER_METADATA = {"creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid"}
_LACKED_IN_SPEC = {
    "bundles": "bundles are not listed by hand here; give paths",
    "deleteNamespace": "no namespaces are made here",
    "helmRepoURLRegex": "Helm charts are not fetched here",
    "helmSecretName": "Helm charts are not fetched here",
    "helmSecretNameForPaths": "Helm charts are not fetched here",
    "imageScanCommit": "images are not scanned here",
    "imageScanInterval": "images are not scanned here",
    "ociRegistry": "bundles are not kept in an OCI registry",
    "serviceAccount": "what a delivery may do is set at the Cluster",
    "targetNamespace": "no namespace is set from outside the content",
    "webhookSecret": "a webhook's secret is not named in a manifest",
}
_LACKED_IN_DRIFT = {
    "force": "there is no release to recreate",
    "keepFailHistory": "there is no history of a release to keep",
}


class GitRepoSpec(TypedDict, total=False):
    """The writable fields of a GitRepo under their REST names; only what the manifest gave is there."""

    name: str
    url: str
    branch: str
    tag: str
    commit: str
    paths: list[str]
    polling_interval: str
    disable_polling: bool
    paused: bool
    credential: str
    ca_bundle: str
    insecure_skip_tls_verify: bool
    targets: list[dict[str, Any]]
    correct_drift: bool
    keep_resources: bool
    force_sync_generation: int


def read_manifests(data: str | bytes) -> list[GitRepoSpec]:
    """The GitRepos in a YAML text of one or more documents, in their order.

    Every value has passed its field's validator; names of credentials, clusters and groups are not looked up.
    Raises ValidationError with one message for each fault (at most 50), which names the document's number,
    from 1, and the place in it: `document 2: spec.helmSecretName: ...`.
    """
    errors: list[str] = []
    specs: list[GitRepoSpec] = []
    seen: dict[str, int] = {}
    for number, content in read_documents(data):
        document = _Document(number, errors)
        spec = document.read(content)
        name = spec.get("name", "")
        if name and name in seen:
            document.refuse("metadata.name", f"Document {seen[name]} has the same name.")
        seen.setdefault(name, number)
        specs.append(spec)
        if len(errors) >= MAX_ERRORS:
            break
    if not specs:
        errors.append("There is no GitRepo in the text.")
    if errors:
        raise ValidationError([ValidationError(message, code="manifest") for message in errors])
    return specs


class _Document:
    """One document: its faults are added to `errors`, and reading goes on."""

    def __init__(self, number: int, errors: list[str]) -> None:
        self._number = number
        self._errors = errors

    def refuse(self, place: str, message: str) -> None:
        where = f"{place}: " if place else ""
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(f"document {self._number}: {where}{message}")

    def read(self, content: object) -> GitRepoSpec:
        spec: GitRepoSpec = {}
        if not isinstance(content, dict):
            self.refuse("", "A manifest is an object with apiVersion, kind, metadata and spec.")
            return spec
        if content.get("apiVersion") != API_VERSION or content.get("kind") != "GitRepo":
            self.refuse("", f"Only manifests with apiVersion {API_VERSION} and kind GitRepo are read here.")
            return spec
        self._known(content, "", {"apiVersion", "kind", "metadata", "spec", "status"}, {})
        self._metadata(self._object(content, "metadata", ""), spec)
        self._spec(self._object(content, "spec", ""), spec)
        return spec

    # -- the parts of a document -----------------------------------------------------------------------------

    def _metadata(self, metadata: dict[str, Any], spec: GitRepoSpec) -> None:
        known = {"name", "namespace", "labels", "annotations"} | _SERVER_METADATA
        self._known(metadata, "metadata", known, {})
        name = self._text(metadata, "name", "metadata", validators.validate_name)
        if name is not None:
            spec["name"] = name
        elif metadata.get("name") in (None, ""):
            self.refuse("metadata.name", "A GitRepo needs a name.")
        if metadata.get("namespace") not in (None, "", "fleet-default", "fleet-local"):
            self.refuse(
                "metadata.namespace",
                "There are no namespaces (workspaces) here: every GitRepo sees every Cluster. Remove it, "
                "or write fleet-default, if that is meant.",
            )
        for key in ("labels", "annotations"):
            if metadata.get(key):
                self.refuse(f"metadata.{key}", "A GitRepo has no labels and annotations here. Remove them.")

    def _spec(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        self._known(given, "spec", set(_TEXTS) | set(_FLAGS) | _OTHER_SPEC_KEYS, _LACKED_IN_SPEC)
        for key, (field, validate) in _TEXTS.items():
            text = self._text(given, key, "spec", validate)
            if text is not None:
                spec[field] = text  # type: ignore[literal-required]  # the names are those of GitRepoSpec
        if given.get("repo") in (None, ""):
            self.refuse("spec.repo", "A GitRepo needs the URL of its repository.")
        for key, field in _FLAGS.items():
            flag = self._flag(given, key, "spec")
            if flag is not None:
                spec[field] = flag  # type: ignore[literal-required]
        self._revision(given, spec)
        self._paths(given, spec)
        self._ca_bundle(given, spec)
        self._correct_drift(given, spec)
        self._force_sync_generation(given, spec)
        self._targets(given, spec)

    def _revision(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        """A commit or a tag. Fleet looks at the branch only where there is no revision, so the revision goes first."""
        revision = self._text(given, "revision", "spec", validators.validate_ref)
        if revision and _COMMIT.fullmatch(revision):
            if self._valid("spec.revision", validators.validate_commit, revision.lower()):
                spec["commit"] = revision.lower()
        elif revision:
            spec["tag"] = revision
        if revision:
            spec.pop("branch", None)

    def _paths(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        paths = given.get("paths")
        if paths is None:
            return
        if isinstance(paths, list):
            paths = [_path_of_fleet(path) if isinstance(path, str) else path for path in paths]
        if self._valid("spec.paths", validators.validate_paths, paths):
            spec["paths"] = paths

    def _ca_bundle(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        """Fleet's is bytes, which JSON and YAML write in base64."""
        encoded = self._text(given, "caBundle", "spec", None)
        if encoded is None:
            return
        try:
            bundle = base64.b64decode("".join(encoded.split()), validate=True).decode()
        except (binascii.Error, ValueError):
            self.refuse("spec.caBundle", "This is PEM certificates, the whole of them once more encoded in base64.")
            return
        if self._valid("spec.caBundle", validators.validate_ca_bundle, bundle):
            spec["ca_bundle"] = bundle

    def _correct_drift(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        if given.get("correctDrift") is None:
            return
        drift = self._object(given, "correctDrift", "spec")
        self._known(drift, "spec.correctDrift", {"enabled"}, _LACKED_IN_DRIFT)
        enabled = self._flag(drift, "enabled", "spec.correctDrift")
        if enabled is not None:
            spec["correct_drift"] = enabled

    def _force_sync_generation(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        value = given.get("forceSyncGeneration")
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT64:
            self.refuse("spec.forceSyncGeneration", "This is a whole number, not below 0.")
            return
        spec["force_sync_generation"] = value

    def _targets(self, given: dict[str, Any], spec: GitRepoSpec) -> None:
        targets = given.get("targets")
        if targets is None:
            return
        if not isinstance(targets, list) or len(targets) > validators.MAX_TARGETS:
            self.refuse("spec.targets", f"This is a list of at most {validators.MAX_TARGETS} objects.")
            return
        spec["targets"] = [self._target(target, f"spec.targets[{index}]") for index, target in enumerate(targets)]

    def _target(self, given: object, place: str) -> dict[str, Any]:
        if not isinstance(given, dict):
            self.refuse(place, "A target is an object with clusterName, clusterSelector or clusterGroup.")
            return {}
        lacked = {"clusterGroupSelector": "name the group in clusterGroup, or use clusterSelector"}
        self._known(given, place, {"name", "clusterName", "clusterSelector", "clusterGroup"}, lacked)
        # Only a title for the reader; what Fleet's bundles do with it (targetCustomizations) is not ours.
        self._text(given, "name", place, None)
        target: dict[str, Any] = {}
        for key, field in (("clusterName", "cluster"), ("clusterGroup", "cluster_group")):
            name = self._text(given, key, place, validators.validate_name)
            if name is not None:
                target[field] = name
        selector = _without_nulls(given.get("clusterSelector"))
        if selector is not None and self._valid(f"{place}.clusterSelector", validators.validate_selector, selector):
            target["cluster_selector"] = selector
        if not any(given.get(key) not in (None, "") for key in ("clusterName", "clusterSelector", "clusterGroup")):
            self.refuse(place, "A target needs clusterName, clusterSelector or clusterGroup.")
        return target

    # -- values ----------------------------------------------------------------------------------------------

    def _known(self, given: dict[str, Any], place: str, known: set[str], lacked: dict[str, str]) -> None:
        for key, value in given.items():
            if key in known:
                continue
            if key in lacked:
                if not _asks_for_nothing(value):
                    self.refuse(f"{place}.{key}", f"This is not supported: {lacked[key]}. Remove it.")
            else:
                self.refuse(place, f"{shown(key)} is no key of a GitRepo manifest. Correct or remove it.")

    def _object(self, given: dict[str, Any], key: str, place: str) -> dict[str, Any]:
        value = given.get(key)
        if isinstance(value, dict):
            return value
        if value is not None:
            self.refuse(f"{place}.{key}" if place else key, "This is an object.")
        return {}

    def _text(
        self, given: dict[str, Any], key: str, place: str, validate: Callable[[object], None] | None
    ) -> str | None:
        """The text at `key`; None if there is none, if it is empty, or if it was refused."""
        value = given.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.refuse(f"{place}.{key}", "This is text; put numbers, true and false in quotes.")
            return None
        if validate is not None and not self._valid(f"{place}.{key}", validate, value):
            return None
        return value

    def _flag(self, given: dict[str, Any], key: str, place: str) -> bool | None:
        value = given.get(key)
        if value is None or isinstance(value, bool):
            return value
        self.refuse(f"{place}.{key}", "This is true or false, without quotes.")
        return None

    def _valid(self, place: str, validate: Callable[[object], None], value: object) -> bool:
        try:
            validate(value)
        except ValidationError as error:
            self.refuse(place, error.messages[0])
            return False
        return True


_TEXTS: dict[str, tuple[str, Callable[[object], None]]] = {
    "repo": ("url", validators.validate_url),
    "branch": ("branch", validators.validate_ref),
    "pollingInterval": ("polling_interval", validators.validate_polling_interval),
    "clientSecretName": ("credential", validators.validate_name),
}
_FLAGS = {
    "disablePolling": "disable_polling",
    "paused": "paused",
    "insecureSkipTLSVerify": "insecure_skip_tls_verify",
    "keepResources": "keep_resources",
}
_OTHER_SPEC_KEYS = {"revision", "paths", "caBundle", "correctDrift", "forceSyncGeneration", "targets"}


def _path_of_fleet(path: str) -> str:
    """Our one spelling: to Fleet, `/`, `./` and `.` are the root, and `./x/` is `x`."""
    while path.startswith("./"):
        path = path[2:]
    return path.rstrip("/") or "."


def _asks_for_nothing(value: object) -> bool:
    """Whether Go's encoder could have left the value out: null, false, 0, empty, or an object of nothing
    else."""
    if isinstance(value, dict):
        return all(_asks_for_nothing(inner) for inner in value.values())
    return value in (None, "", False, 0, [])


def _without_nulls(value: object) -> object:
    """`value` without the keys whose value is null, which in a Kubernetes object is the same as no key."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
