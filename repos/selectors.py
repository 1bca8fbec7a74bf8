"""Kubernetes' label selectors."""

from collections.abc import Mapping
from typing import Any


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether `labels` meet every condition of `selector`, which `validators.validate_selector` has accepted.

    Kubernetes' rules: `{}` matches everything, and NotIn and DoesNotExist match labels without the key.
    Raises ValueError for an operator that does not exist: to call that "no match" would remove what is
    delivered.
    """
    wanted = selector.get("matchLabels") or {}
    if any(key not in labels or labels[key] != value for key, value in wanted.items()):
        return False
    return all(_expression_matches(expression, labels) for expression in selector.get("matchExpressions") or [])


def _expression_matches(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    if operator == "In":
        return key in labels and labels[key] in expression["values"]
    if operator == "NotIn":
        return key not in labels or labels[key] not in expression["values"]
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    raise ValueError("a selector's operator is none of In, NotIn, Exists and DoesNotExist")
