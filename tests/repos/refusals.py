"""Input that every door to a GitRepo's spec refuses, with the field that it has to name. Numbers are those of the
security cases: URLs 1 to 11, refs and paths 12 to 15, intervals 25.
"""

from typing import Any

import pytest

from repos.models import Delivery, Event, GitRepo, Host, Remote, Revision, SyncJob

CANARY = "c4n4ry-t0k3n"
TOO_LONG_URL = "https://git.example.com/" + "a" * 2048

URLS = {
    "1 ext": "ext::sh -c touch% /tmp/x",
    "1 upper-case ext": "EXT::sh",
    "1 space before ext": " ext::sh",
    "1 line feed before ext": "\next::sh",
    "1 fd": "fd::17",
    "1 any helper": "anything::x",
    "1 http is off": "http://git.example.com/x.git",
    "1 git protocol": "git://git.example.com/x.git",
    "2 file": "file:///x",
    "2 absolute path": "/abs",
    "2 relative path": "../rel",
    "2 home": "~/x",
    "2 drive": "C:\\x",
    "2 UNC": "\\\\unc\\x",
    "3 option": "--upload-pack=touch /tmp/x",
    "3 option as host": "ssh://-oProxyCommand=x/y",
    "3 option as scp-like host": "user@-oProxy:x",
    "3 option as path": "git@git.example.com:-x",
    "4 control character": "https://git.example.com/a\x01b",
    "4 carriage return": "https://git.example.com/a\r\nb",
    "4 space": "https://git.example.com/a b",
    "4 host beyond ASCII": "https://gіt.example.com/a",
    "5 credentials": f"https://user:{CANARY}@git.example.com/x.git",
    "5 token in the query": f"https://git.example.com/x.git?private_token={CANARY}",
    "6 loopback": "https://127.0.0.1/x",
    "6 one number": "https://2130706433/x",
    "6 octal": "https://0177.0.0.1/x",
    "6 hexadecimal": "https://0x7f.1/x",
    "6 short": "https://127.1/x",
    "6 mapped": "https://[::ffff:127.0.0.1]/x",
    "6 loopback of IPv6": "https://[::1]/x",
    "6 localhost": "https://localhost./x",
    "6 private": "https://10.0.0.1/x",
    "6 metadata": "https://169.254.169.254/latest",
    "6 CGNAT": "https://100.64.0.1/x",
    "9 no host": "https:///host/x",
    "9 port": "https://h.example.com:99999/x",
    "9 too long": TOO_LONG_URL,
    "10 variable": "https://git.example.com/${HOME}",
    "11 javascript": "javascript:alert(1)",
    "11 data": "data:text/html,x",
    "empty": "",
}
REFS = {
    "12 option": "-x",
    "12 long option": "--upload-pack=x",
    "12 two dots": "a..b",
    "12 tilde": "x~1",
    "12 search": "x^{/re}",
    "12 reflog": "@{-1}",
    "12 refs below": "refs/../x",
    "12 space": "a b",
    "12 lock": "x.lock",
    "12 slash at the end": "x/",
    "12 too long": "x" * 256,
    "13 refspec": "main:refs/heads/x",
    "13 forced refspec": "+refs/*",
}
PATHS = {
    "15 up": "../../etc",
    "15 absolute": "/etc",
    "15 up in the middle": "a/../../b",
    "15 backslash": "a\\..\\b",
    "15 NUL": "a\0b",
    "15 .git": ".git",
    "15 below .git": ".git/config",
    "15 .GIT": ".GIT",
    "15 short name": "GIT~1",
}
INTERVALS = {"25 days": "1d", "25 negative": "-5s", "25 float": "1e9", "25 NaN": "NaN", "P11 nonsense": "soon"}
OTHERS: dict[str, dict[str, Any]] = {
    "14 range of 10 kB": {"semver": ">=1.0.0 " * 1250},
    "14 no range": {"semver": "newest"},
    "commit too short": {"commit": "34c224ac"},
    "targets with an unknown key": {"targets": [{"clusterName": "x"}]},
    "target that says nothing": {"targets": [{}]},
    "selector with an unknown operator": {
        "targets": [{"cluster_selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]
    },
    "44 shell in a target": {"targets": [{"cluster": "$(id)"}]},
    "CA bundle that is none": {"ca_bundle": "hello"},
}


def _rows() -> list[Any]:
    rows = [pytest.param({"url": value}, "url", id=f"url {name}") for name, value in URLS.items()]
    for field in ("branch", "tag"):
        rows += [pytest.param({field: value}, field, id=f"{field} {name}") for name, value in REFS.items()]
    rows += [pytest.param({"paths": [value]}, "paths", id=f"paths {name}") for name, value in PATHS.items()]
    rows += [
        pytest.param({"polling_interval": value}, "polling_interval", id=f"interval {name}")
        for name, value in INTERVALS.items()
    ]
    return rows + [pytest.param(given, next(iter(given)), id=name) for name, given in OTHERS.items()]


REFUSALS = _rows()


def everything() -> dict[str, Any]:
    """What must be as it was after a refusal: how many rows there are, and every GitRepo whole."""
    models = (GitRepo, Remote, Host, Revision, SyncJob, Delivery, Event, GitRepo.history.model)
    counts = {model.__name__: model._default_manager.count() for model in models}
    return {
        **counts,
        "gitrepos": list(GitRepo.objects.order_by("pk").values()),
        "remotes": list(Remote.objects.order_by("pk").values()),
    }
