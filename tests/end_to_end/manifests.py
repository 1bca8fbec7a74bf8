"""Fleet manifests for registering many GitRepos with one POST."""

from collections.abc import Iterable
from typing import Any

import yaml

from tests.end_to_end.stack import Stack


def manifest(name: str, url: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "fleet.cattle.io/v1alpha1",
        "kind": "GitRepo",
        "metadata": {"name": name},
        "spec": {"repo": url, "branch": "main", **spec},
    }


def register_all(stack: Stack, manifests: Iterable[dict[str, Any]]) -> None:
    """One POST with all documents; all are registered or none."""
    body = yaml.safe_dump_all(manifests).encode()
    status, answer = stack.request("POST", "/api/v1/gitrepos/", raw=body, content_type="application/yaml")
    assert status == 201, answer
