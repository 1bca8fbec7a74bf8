"""Fleet's manifests, read into the names of our REST API."""

import base64
import re

import pytest
from django.core.exceptions import ValidationError

from repos.manifests import read_manifests
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
