"""What labels, selectors and targets may be."""

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from repos import validators
from tests.repos.test_validators import message

OTHER_VALIDATORS = [
    validators.validate_paths,
    validators.validate_labels,
    validators.validate_selector,
    validators.validate_targets,
]


# -- labels, selectors and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"env": "prod"},
        {"a": ""},
        {"example.com/team": "a.b_c-d"},
        {"A" * 63: "Z" * 63},
        {f"k{n}": "v" for n in range(64)},
    ],
)
def test_labels(labels: dict[str, str]) -> None:
    validators.validate_labels(labels)


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a" * 64: "x"},
        {"-a": "x"},
        {"a-": "x"},
        {"a b": "x"},
        {"é": "x"},
        {"/a": "x"},
        {"a/b/c": "x"},
        {"Example.com/a": "x"},
        {"x/": "x"},
        {"a" * 254 + "/a": "x"},
        {1: "x"},
        {None: "x"},
        {"a": 1},
        {"a": True},
        {"a": None},
        {"a": ["x"]},
        {"a": {"b": "c"}},
        {"a": "x" * 64},
        {"a": "-x"},
        {"a": "x\n"},
        {"a": "x y"},
        {f"k{n}": "v" for n in range(65)},
    ],
)
def test_no_labels(labels: object) -> None:
    assert "label" in message(validators.validate_labels, labels)


def expressions(*found: object) -> dict[str, object]:
    return {"matchExpressions": list(found)}


@pytest.mark.parametrize(
    "selector",
    [
        {},
        {"matchLabels": {"env": "prod"}},
        expressions({"key": "a", "operator": "In", "values": ["x", ""]}),
        expressions({"key": "a", "operator": "Exists"}, {"key": "a", "operator": "DoesNotExist", "values": []}),
    ],
)
def test_a_selector(selector: object) -> None:
    validators.validate_selector(selector)


@pytest.mark.parametrize(
    ("selector", "where"),
    [
        (None, "A selector is"),
        ([], "A selector is"),
        ("env=prod", "A selector is"),
        ({"matchlabels": {}}, "'matchlabels' is not known"),
        ({3: {}}, "3 is not known"),
        ({"matchLabels": None}, "matchLabels: "),
        ({"matchLabels": {"a": 1}}, "matchLabels: "),
        ({"matchExpressions": None}, "matchExpressions: "),
        ({"matchExpressions": {}}, "matchExpressions: "),
        (expressions(None), "matchExpressions[0]: "),
        (expressions({"key": "a", "operator": "Exists"}, {}), "matchExpressions[1]: "),
        (expressions({"key": "a"}), "operator is one of"),
        (expressions({"key": "a", "operator": ["In"]}), "operator is one of"),
        (expressions({"key": "a", "operator": "in", "values": ["x"]}), "operator is one of"),
        (expressions({"key": "a", "operator": "In"}), "need values"),
        (expressions({"key": "a", "operator": "In", "values": []}), "need values"),
        (expressions({"key": "a", "operator": "Exists", "values": ["x"]}), "need values"),
        (expressions({"key": "a", "operator": "In", "values": "x"}), "values is a list"),
        (expressions({"key": "a", "operator": "In", "values": None}), "values is a list"),
        (expressions({"key": "a", "operator": "In", "values": [1]}), "label's value"),
        (expressions({"key": "a", "operator": "In", "values": ["x"] * 65}), "at most 64"),
        (expressions({"key": "a", "operator": "Exists", "extra": 1}), "'extra' is not known"),
        (expressions(*[{"key": "a", "operator": "Exists"}] * 65), "at most 64"),
    ],
)
def test_no_selector(selector: object, where: str) -> None:
    assert where in message(validators.validate_selector, selector)


@pytest.mark.parametrize(
    "targets",
    [
        [],
        [
            {"cluster": "prod-eu"},
            {"cluster_selector": {"matchLabels": {"env": "prod"}}},
            {"cluster_group": "eu"},
        ],
        [{"cluster_selector": {}, "cluster_group": "eu", "cluster": "a"}],
        [{"cluster": "a"}] * 100,
    ],
)
def test_targets(targets: object) -> None:
    validators.validate_targets(targets)


@pytest.mark.parametrize(
    ("targets", "where"),
    [
        (None, "targets is a list"),
        ({}, "targets is a list"),
        ("prod", "targets is a list"),
        ([{"cluster": "a"}] * 101, "at most 100"),
        ([None], "targets[0]: A target is"),
        (["prod"], "targets[0]: A target is"),
        ([[{"cluster": "a"}]], "targets[0]: A target is"),
        ([{"cluster": "a"}, {}], "targets[1]: A target needs"),
        ([{"cluster": None}], "targets[0].cluster: A name"),
        ([{"cluster": "A"}], "targets[0].cluster: A name"),
        ([{"cluster_group": 7}], "targets[0].cluster_group: A name"),
        ([{"cluster": "a", "clusters": ["b"]}], "targets[0]: 'clusters' is not known"),
        ([{"cluster_group_selector": {}}], "targets[0]: cluster_group_selector is not supported"),
        ([{"cluster": "a"}, {"cluster_selector": None}], "targets[1].cluster_selector: A selector"),
        (
            [{"cluster_selector": {"matchLabels": {"a": 1}}}],
            "targets[0].cluster_selector.matchLabels: A label's",
        ),
        (
            [{"cluster_selector": expressions({"key": "a", "operator": "no"})}],
            "targets[0].cluster_selector.matchExpressions[0]: operator",
        ),
    ],
)
def test_no_targets(targets: object, where: str) -> None:
    assert where in message(validators.validate_targets, targets)


def test_an_unknown_key_is_shown_escaped_and_cut() -> None:
    found = message(validators.validate_targets, [{"\x1b[31m" + "x" * 9999: 1}])
    assert "\\x1b" in found
    assert "\x1b" not in found
    assert len(found) < 200


keys = st.sampled_from(
    ["cluster", "cluster_selector", "matchLabels", "matchExpressions", "key", "operator", "values", "a"]
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["In", "Exists"]),
)
json = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=20,
)


@given(json)
def test_any_json_is_accepted_or_a_validation_error(value: object) -> None:
    for validate in OTHER_VALIDATORS:
        for wrapped in (value, [value], {"matchExpressions": [value]}, [{"cluster_selector": value}]):
            try:
                validate(wrapped)
            except ValidationError as error:
                assert error.messages[0]
