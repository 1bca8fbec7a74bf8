"""Which labels a selector matches."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repos.selectors import matches
from repos.validators import OPERATORS, validate_selector

PROD = {"env": "prod", "tier": "web", "example.com/team": ""}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    found: dict[str, Any] = {"key": key, "operator": operator}
    return {"matchExpressions": [{**found, "values": list(values)} if values else found]}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"matchLabels": {}}, True),
        ({"matchExpressions": []}, True),
        ({"matchLabels": {"env": "prod"}}, True),
        ({"matchLabels": {"env": "prod", "tier": "web"}}, True),
        ({"matchLabels": {"env": "prod", "tier": "db"}}, False),
        ({"matchLabels": {"env": "Prod"}}, False),
        ({"matchLabels": {"zone": ""}}, False),
        ({"matchLabels": {"example.com/team": ""}}, True),
        (expression("env", "In", "dev", "prod"), True),
        (expression("env", "In", "dev"), False),
        (expression("zone", "In", "dev"), False),
        (expression("env", "NotIn", "dev"), True),
        (expression("env", "NotIn", "prod"), False),
        (expression("zone", "NotIn", "a"), True),
        (expression("env", "Exists"), True),
        (expression("zone", "Exists"), False),
        (expression("env", "DoesNotExist"), False),
        (expression("zone", "DoesNotExist"), True),
        ({"matchLabels": {"env": "prod"}} | expression("tier", "In", "db"), False),
        ({"matchLabels": {"env": "dev"}} | expression("tier", "In", "web"), False),
    ],
)
def test_kubernetes_rules(selector: dict[str, Any], expected: bool) -> None:
    validate_selector(selector)
    assert matches(selector, PROD) is expected


def test_no_labels_match_the_empty_selector_alone() -> None:
    assert matches({}, {})
    assert not matches({"matchLabels": {"env": "prod"}}, {})


def test_an_operator_that_does_not_exist_is_not_taken_for_no_match() -> None:
    with pytest.raises(ValueError, match="operator"):
        matches(expression("env", "in", "prod"), PROD)


names = st.sampled_from(["a", "b", "c"])


@given(names, st.lists(names, min_size=1, max_size=3), st.dictionaries(names, names))
def test_each_operator_and_its_opposite_split_all_labels(key: str, values: list[str], labels: dict[str, str]) -> None:
    assert matches(expression(key, "In", *values), labels) != matches(expression(key, "NotIn", *values), labels)
    assert matches(expression(key, "Exists"), labels) != matches(expression(key, "DoesNotExist"), labels)
    assert len(OPERATORS) == 4
