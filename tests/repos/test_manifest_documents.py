"""A file of manifests: its documents, its bounds, and what is no YAML."""

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from repos.manifests import MAX_ERRORS, read_manifests
from tests.repos.test_manifests import MINIMAL, messages, with_spec

# -- documents -----------------------------------------------------------------------------------------------


def test_documents_keep_their_order_and_empty_ones_count_for_nothing() -> None:
    other = MINIMAL.replace("shop}", "other}")
    specs = read_manifests(f"---\n---\n{MINIMAL}---\n---\n{other}---\n".encode())
    assert [spec["name"] for spec in specs] == ["shop", "other"]
    assert messages(f"---\n---\n{MINIMAL}---\n{MINIMAL}") == [
        "document 3: metadata.name: Document 2 has the same name."
    ]


def test_all_faults_are_told_at_once_up_to_a_limit() -> None:
    found = messages(with_spec("branch: 1\n  helmSecretName: x\n  interval: y") + "---\nkind: Secret\n")
    assert [message.split(":")[0] for message in found] == ["document 1"] * 3 + ["document 2"]
    assert len(messages("".join(f"x{n}: 1\n" for n in range(9999)) + MINIMAL)) == MAX_ERRORS


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", b""])
def test_no_document_at_all_is_said(text: str | bytes) -> None:
    assert messages(text) == ["There is no GitRepo in the text."]


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "document 1: line 1: Anchors and aliases"),
        (f"{MINIMAL}---\na: *x\n", "document 2: line 6: Anchors and aliases"),
        ("a: &x 1", "Anchors and aliases"),
        ("a: !!python/object/apply:os.system [id]", "document 1: line 1: Tags"),
        ("a: !!binary eA==", "Tags"),
        ("a: !x y", "Tags"),
        ("[" * 33 + "]" * 33, "nested more than 32"),
        ("[" * 1_000_000, "nested more than 32"),
        ("{a: " * 200_000, "nested more than 32"),
        ("- " * 500_000, "nested more than 32"),
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' is there twice"),
        (
            MINIMAL + "---\n" + with_spec("paused: true\n  paused: false"),
            "document 2: This is no YAML that is read here: line 1",
        ),
        ("1: a", "the key 1 is not text"),
        ("? [a]\n: b", "is not text"),
        ("a: [", "document 1: This is no YAML"),
        ("a: b: c", "document 1: This is no YAML"),
        ("a: \x00", "a character that YAML does not allow"),
        ("\t- a", "This is no YAML"),
        (b"\xff\xfe", "not in UTF-8"),
        ("\ud800", "not in UTF-8"),
        ("x" * (1024 * 1024 + 1), "at most 1048576 bytes"),
        ("---\n" * 1001, "more than 1000 documents"),
        ("[" + "a," * 500_000 + "]", "more than 50000 keys and values"),
    ],
)
def test_yaml_that_could_do_harm_is_refused(text: str | bytes, part: str) -> None:
    [message] = messages(text)
    assert part in message


@pytest.mark.parametrize("value", [None, 7, ["x"], {"a": 1}])
def test_what_is_no_text_is_refused(value: object) -> None:
    assert messages(value) == ["Give the manifests as text."]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    ["0x_", "0b_", "0o7", "1:30", "2001-01-01", "9" * 5000, "1e400", ".inf", "=", "<<", "1__0", "-", "~"],
)
def test_odd_scalars_are_text_or_none(value: str) -> None:
    text = with_spec(f"clientSecretName: {value}")
    try:
        [spec] = read_manifests(text)
    except ValidationError as error:
        assert len(error.messages) == 1
        return
    assert spec.get("credential", value) == value


pieces = st.sampled_from(
    [
        "a",
        "b: ",
        ": ",
        "- ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "'",
        '"',
        "|",
        ">",
        "#",
        "---\n",
        "...",
        "%",
        "\\ud800",
        "\\x00",
        "? ",
        "null",
        "0x_",
        "1.5",
        "true",
        "\t",
        "\u2028",
        "é",
        "apiVersion: fleet.cattle.io/v1alpha1\nkind: GitRepo\n",
        "spec: ",
        "targets: ",
    ]
)


@given(st.one_of(st.text(max_size=80), st.lists(pieces, max_size=20).map("".join), st.binary(max_size=60)))
def test_any_text_is_read_or_a_validation_error(text: str | bytes) -> None:
    try:
        read_manifests(text)
    except ValidationError as error:
        assert error.messages


json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just("x")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "enabled", "clusterName", "clusterSelector", "matchLabels"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)
FIELDS = [
    "repo",
    "branch",
    "revision",
    "paths",
    "caBundle",
    "correctDrift",
    "targets",
    "pollingInterval",
    "serviceAccount",
    "paused",
]


@given(st.sampled_from(FIELDS), json)
def test_any_value_of_a_field_is_read_or_a_validation_error(field: str, value: object) -> None:
    written = str(value).replace("None", "null").replace("True", "true").replace("False", "false")
    try:
        read_manifests(
            with_spec("branch: main").replace("branch: main", f"{field}: {written}") if field != "repo" else written
        )
    except ValidationError as error:
        assert error.messages
