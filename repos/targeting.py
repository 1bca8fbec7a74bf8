"""Which clusters a GitRepo's targets match. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from repos.selectors import matches


class Labelled(Protocol):
    name: str
    labels: Any


def target_matches(target: Mapping[str, Any], cluster: Labelled, groups: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether one target names the cluster. What a target says is joined by "and"; an unknown group matches nothing.

    `groups` gives each ClusterGroup's selector by its name.
    """
    if "cluster" in target and target["cluster"] != cluster.name:
        return False
    if "cluster_selector" in target and not matches(target["cluster_selector"], cluster.labels):
        return False
    if "cluster_group" in target:
        selector = groups.get(target["cluster_group"])
        return selector is not None and matches(dict(selector), cluster.labels)
    return bool(target)


def is_target(targets: Iterable[Mapping[str, Any]], cluster: Labelled, groups: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any of `targets` matches the cluster."""
    return any(target_matches(target, cluster, groups) for target in targets)
