"""Fleet's manifests, read into the names of our REST API."""

import base64
import re

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from repos.manifests import MAX_ERRORS, read_manifests
from tests.repos.test_validators import certificate, key

__all__ = ["certificate", "key"]

SHA = "34c224acd0f1d6a9c1f5b1b1f9b0a3a1c2d3e4f5"
HEAD = "apiVersion: fleet.cattle.io/v1alpha1\nkind: GitRepo\n"
URL = "https://git.example.com/team/shop.git"
MINIMAL = f"{HEAD}metadata: {{name: shop}}\nspec: {{repo: '{URL}'}}\n"
FULL = f"""
{HEAD}
metadata:
  name: shop
  namespace: fleet-default
  labels: {{}}
spec:
  repo: {URL}
  branch: release/1.x
  paths: [deploy, ./charts/*, apps/**/prod/]
  pollingInterval: 1h30m
  disablePolling: true
  paused: false
  clientSecretName: team-token
  insecureSkipTLSVerify: true
  keepResources: true
  forceSyncGeneration: 3
  correctDrift: {{enabled: true, force: false}}
  targets:
  - name: one
    clusterName: prod-eu
  - clusterSelector:
      matchLabels: {{env: prod}}
      matchExpressions: [{{key: tier, operator: In, values: [web]}}]
  - clusterGroup: eu
    clusterSelector: {{}}
"""


def with_spec(line: str) -> str:
    return f"{HEAD}metadata: {{name: shop}}\nspec:\n  repo: {URL}\n  {line}\n"


def messages(text: str | bytes) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        read_manifests(text)
    return [str(message) for message in caught.value.messages]


def test_only_what_the_manifest_gave_is_there() -> None:
    assert read_manifests(MINIMAL) == [{"name": "shop", "url": URL}]


def test_every_field() -> None:
    assert read_manifests(FULL) == [
        {
            "name": "shop",
            "url": URL,
            "branch": "release/1.x",
            "paths": ["deploy", "charts/*", "apps/**/prod"],
            "polling_interval": "1h30m",
            "disable_polling": True,
            "paused": False,
            "credential": "team-token",
            "insecure_skip_tls_verify": True,
            "keep_resources": True,
            "force_sync_generation": 3,
            "correct_drift": True,
            "targets": [
                {"cluster": "prod-eu"},
                {
                    "cluster_selector": {
                        "matchLabels": {"env": "prod"},
                        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["web"]}],
                    }
                },
                {"cluster_group": "eu", "cluster_selector": {}},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        (f"revision: {SHA}", "commit", SHA),
        (f"revision: {SHA.upper()}", "commit", SHA),
        ("revision: " + "a" * 64, "commit", "a" * 64),
        ("revision: v1.2.3", "tag", "v1.2.3"),
        (f"revision: {SHA[:12]}", "tag", SHA[:12]),
        ("branch: 2024-01-01", "branch", "2024-01-01"),
        ("branch: '1.10'", "branch", "1.10"),
        ("paths: [/]", "paths", ["."]),
        ("paths: ['./']", "paths", ["."]),
        ("paths: []", "paths", []),
        (
            "targets: [{clusterSelector: {matchLabels: null, matchExpressions: [{key: a, operator: Exists}]}}]",
            "targets",
            [{"cluster_selector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}],
        ),
        ("targets: []", "targets", []),
        ("pollingInterval: 0s", "polling_interval", "0s"),
        ("correctDrift: {enabled: false}", "correct_drift", False),
        (
            "targets: [{clusterName: a, clusterSelector: null, clusterGroup: ''}]",
            "targets",
            [{"cluster": "a"}],
        ),
    ],
)
def test_a_field(line: str, field: str, value: object) -> None:
    assert read_manifests(with_spec(line)) == [{"name": "shop", "url": URL, field: value}]


def test_a_ca_bundle_is_decoded(certificate: str) -> None:
    encoded = base64.encodebytes(certificate.encode()).decode().replace("\n", "\n    ")
    [spec] = read_manifests(with_spec(f"caBundle: |\n    {encoded}"))
    assert spec["ca_bundle"] == certificate


@pytest.mark.parametrize(
    "line",
    [
        "branch: ''",
        "branch: null",
        "paths: null",
        "targets: null",
        "correctDrift: null",
        "caBundle: ''",
        "helmSecretName: ''",
        "serviceAccount: null",
        "deleteNamespace: false",
        "imageScanCommit: {authorName: '', authorEmail: ''}",
        "ociRegistry: {}",
    ],
)
def test_an_empty_value_is_as_good_as_none(line: str) -> None:
    assert read_manifests(with_spec(line)) == [{"name": "shop", "url": URL}]


def test_what_a_server_wrote_is_passed_over() -> None:
    text = MINIMAL.replace("{name: shop}", "{name: shop, uid: x, resourceVersion: '7', generation: 2}")
    assert read_manifests(text + "status: {commit: abc, conditions: [{type: Ready}]}\n")[0]["name"] == "shop"


LACKED = [
    "bundles: [{base: a}]",
    "deleteNamespace: true",
    "helmRepoURLRegex: x",
    "helmSecretName: x",
    "imageScanInterval: 1m",
]
LACKED += [
    "helmSecretNameForPaths: x",
    "imageScanCommit: {authorName: a}",
    "ociRegistry: {reference: x}",
    "serviceAccount: x",
]
LACKED += ["targetNamespace: x", "webhookSecret: x"]


@pytest.mark.parametrize("line", LACKED)
def test_what_we_lack_is_refused_by_name(line: str) -> None:
    [message] = messages(with_spec(line))
    assert message.startswith(f"document 1: spec.{line.partition(':')[0]}: This is not supported: ")


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("interval: 15s", "document 1: spec: 'interval' is no key"),
        ("Branch: main", "document 1: spec: 'Branch' is no key"),
        (
            "correctDrift: {enabled: true, force: true}",
            "document 1: spec.correctDrift.force: This is not supp",
        ),
        (
            "correctDrift: {keepFailHistory: true}",
            "document 1: spec.correctDrift.keepFailHistory: This is not",
        ),
        ("correctDrift: {on: true}", "document 1: This is no YAML that is read here: line 6"),
        ("correctDrift: {enable: true}", "document 1: spec.correctDrift: 'enable' is no key"),
        ("correctDrift: true", "document 1: spec.correctDrift: This is an object"),
        ("correctDrift: {enabled: 'yes'}", "document 1: spec.correctDrift.enabled: This is true or false"),
        ("paused: 1", "document 1: spec.paused: This is true or false"),
        ("branch: 1.10", "document 1: spec.branch: This is text; put numbers"),
        ("branch: on", "document 1: spec.branch: This is text; put numbers"),
        ("branch: a..b", "document 1: spec.branch: The name of a branch"),
        ("revision: " + "1" * 18, "document 1: spec.revision: This is text; put numbers"),
        ("revision: '" + "0" * 40 + "'", "document 1: spec.revision: A commit"),
        ("revision: -x", "document 1: spec.revision: The name of a branch"),
        ("pollingInterval: 15", "document 1: spec.pollingInterval: This is text"),
        ("pollingInterval: 1d", "document 1: spec.pollingInterval: The polling interval"),
        ("clientSecretName: A_B", "document 1: spec.clientSecretName: A name"),
        ("caBundle: x", "document 1: spec.caBundle: This is PEM"),
        ("caBundle: eA==", "document 1: spec.caBundle: A CA bundle"),
        ("caBundle: /w==", "document 1: spec.caBundle: This is PEM"),
        ("forceSyncGeneration: -1", "document 1: spec.forceSyncGeneration: "),
        ("forceSyncGeneration: true", "document 1: spec.forceSyncGeneration: "),
        ("forceSyncGeneration: 9223372036854775808", "document 1: spec.forceSyncGeneration: "),
        ("forceSyncGeneration: '1'", "document 1: spec.forceSyncGeneration: "),
        ("paths: deploy", "document 1: spec.paths: paths is a list"),
        ("paths: [a, ../b]", "document 1: spec.paths: paths[1]: "),
        ("paths: [/etc]", "document 1: spec.paths: paths[0]: "),
        ("paths: [1]", "document 1: spec.paths: paths[0]: "),
        ("targets: {}", "document 1: spec.targets: This is a list"),
        ("targets: [a]", "document 1: spec.targets[0]: A target is"),
        ("targets: [{}]", "document 1: spec.targets[0]: A target needs"),
        ("targets: [{name: only}]", "document 1: spec.targets[0]: A target needs"),
        ("targets: [{clusterName: A}]", "document 1: spec.targets[0].clusterName: A name"),
        (
            "targets: [{clusterName: a, clusterGroupSelector: {matchLabels: {a: b}}}]",
            "document 1: spec.targets[0].clusterGroupS",
        ),
        (
            "targets: [{clusterName: a, doNotDeploy: true}]",
            "document 1: spec.targets[0]: 'doNotDeploy' is no key",
        ),
        (
            "targets: [{clusterSelector: {matchLabels: {a: 1}}}]",
            "document 1: spec.targets[0].clusterSelector: matchLabels: ",
        ),
    ],
)
def test_a_fault_in_the_spec_is_named_with_its_place(line: str, start: str) -> None:
    [message] = messages(with_spec(line))
    assert message.startswith(start)


@pytest.mark.parametrize(
    ("metadata", "start"),
    [
        ("{}", "document 1: metadata.name: A GitRepo needs"),
        ("{name: 7}", "document 1: metadata.name: This is text"),
        ("{name: A}", "document 1: metadata.name: A name"),
        ("{name: shop, namespace: team}", "document 1: metadata.namespace: There are no namespaces"),
        ("{name: shop, namespace: [x]}", "document 1: metadata.namespace: "),
        ("{name: shop, labels: {a: b}}", "document 1: metadata.labels: "),
        ("{name: shop, annotations: {a: b}}", "document 1: metadata.annotations: "),
        ("{name: shop, finalizers: [a]}", "document 1: metadata: 'finalizers' is no key"),
    ],
)
def test_a_fault_in_the_metadata_is_named_with_its_place(metadata: str, start: str) -> None:
    [message] = messages(MINIMAL.replace("{name: shop}", metadata))
    assert message.startswith(start)


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL.replace("v1alpha1", "v1"),
        MINIMAL.replace("kind: GitRepo", "kind: Bundle"),
        "apiVersion: v1\nkind: Secret\n",
        "[]",
        "x",
        "7",
    ],
)
def test_another_kind_is_refused(text: str) -> None:
    [message] = messages(f"{MINIMAL}---\n{text}")
    assert re.match(r"document 2: (Only manifests with|A manifest is)", message)


def test_secrets_in_a_url_are_not_repeated() -> None:
    [message] = messages(MINIMAL.replace("https://", "https://u:canary@"))
    assert message.startswith("document 1: spec.repo: ")
    assert "canary" not in message


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
