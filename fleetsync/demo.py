"""The demo of `make run`: a repository, registered through REST like any other, and two commits on their way.

It is a client: it knows the REST API, git, and the folder in which the cluster's content appears.
"""

import functools
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model

NAME = "demo"
READY_TIMEOUT = 90.0
DELIVERY_TIMEOUT = 90.0
GIT_TIMEOUT = 30.0
# Below the GitRepo's folder at the cluster: the release that is applied, and the demo's one file in it.
FILE = Path("current") / "deploy" / "message.txt"

# Never the user's own configuration: no hooks, no signing, no templates, no other name.
_GIT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "fleetsync demo",
    "GIT_AUTHOR_EMAIL": "demo@localhost",
    "GIT_COMMITTER_NAME": "fleetsync demo",
    "GIT_COMMITTER_EMAIL": "demo@localhost",
}

Say = Callable[[str], object]


class DemoError(Exception):
    """What went wrong, in a sentence, with what to look at."""


@dataclass(frozen=True)
class Api:
    """A few verbs of the REST API on this machine."""

    base: str
    token: str

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """(status, parsed JSON or None); status 0 if nobody listens yet."""
        request = urllib.request.Request(  # noqa: S310 - http, to ourselves
            f"{self.base}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
        )
        # No proxy stands between us and ourselves.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        except OSError:
            return 0, None
        try:
            return status, json.loads(text)
        except ValueError:
            return status, None

    def make(self, path: str, body: dict[str, object]) -> None:
        """POSTs `body`; what is there already by that name is left as it is."""
        status, answer = self.request("POST", path, body)
        if status != 201 and self.request("GET", f"{path}{body['name']}/")[0] != 200:
            raise DemoError(f"POST {path} answered {status}: {json.dumps(answer)}")


def wait_for(what: str, timeout: float, happened: Callable[[], bool], explain: Callable[[], str]) -> None:
    """Asks `happened` until it has; after `timeout` seconds raises DemoError with what `explain` finds."""
    deadline = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not happen within {timeout:g} s; {explain()}")
        time.sleep(0.2)


def greet(say: Say) -> Api:
    """Waits until /readyz answers 200, then tells how to get in."""
    from rest_framework.authtoken.models import Token

    address = "127.0.0.1" if settings.WEB_ADDRESS in ("0.0.0.0", "::") else settings.WEB_ADDRESS  # noqa: S104
    user = get_user_model().objects.get(username="admin")
    api = Api(f"http://{address}:{settings.PORT}", Token.objects.get(user=user).key)

    def explain() -> str:
        status, answer = api.request("GET", "/readyz")
        return f"/readyz answered {status or 'not at all'}: {json.dumps(answer)}"

    wait_for("readiness", READY_TIMEOUT, lambda: api.request("GET", "/readyz")[0] == 200, explain)
    password = (settings.DATA_DIR / "admin_password").read_text().strip()
    if not user.check_password(password):
        password = "(changed since the first run)"  # noqa: S105 - a remark
    say("")
    say(f"fleetsync is ready at {api.base}/")
    say(f"  admin page   {api.base}/admin/")
    say(f"  user         {user.get_username()}")
    say(f"  password     {password}")
    say(f"  API token    {api.token}")
    say(f"  try          curl -H 'Authorization: Token {api.token}' {api.base}/api/v1/gitrepos/")
    say("")
    return api


class DemoRepository:
    """A bare repository below DATA_DIR/demo, and the clone that a developer would have."""

    def __init__(self, folder: Path) -> None:
        self.bare = folder / "shop.git"
        self.clone = folder / "clone"

    @property
    def url(self) -> str:
        return self.bare.as_uri()

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """git's output. Raises DemoError with what git said."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=folder or self.clone,
                env={**environment, **_GIT_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=GIT_TIMEOUT,
                check=False,
            )
        except FileNotFoundError as error:
            raise DemoError("git is not on the PATH") from error
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"git {arguments[0]} took longer than {GIT_TIMEOUT:g} s") from error
        if done.returncode:
            raise DemoError(f"git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def open(self) -> None:
        """Makes the repository on the first run, and a fresh clone on every run."""
        self.bare.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--bare", folder=self.bare)
        self.git("symbolic-ref", "HEAD", "refs/heads/main", folder=self.bare)
        shutil.rmtree(self.clone, ignore_errors=True)
        self.git("clone", "--quiet", str(self.bare), str(self.clone), folder=self.bare)
        self.git("checkout", "--quiet", "-B", "main")

    def push(self, text: str) -> str:
        """Commits `text` as deploy/message.txt and pushes it; the commit's id."""
        path = self.clone / "deploy" / "message.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", text.strip())
        self.git("push", "--quiet", "origin", "main")
        return self.git("rev-parse", "HEAD")


def show(api: Api, began: float, say: Say) -> None:
    """Registers the repository, pushes two commits, and tells when each was delivered.

    `began` is the start of everything, on the monotonic clock, which all processes of a machine share.
    """
    repository = DemoRepository(settings.DATA_DIR / "demo")
    target = settings.DATA_DIR / "clusters" / NAME
    repository.open()
    say(f"made the repository {repository.url}")
    for number, word in enumerate(("first", "second"), 1):
        text = f"Hello number {number} at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n"
        commit = repository.push(text)
        pushed = time.monotonic()
        say(f"pushed the {word} commit {commit[:12]}")
        if number == 1:
            register(api, repository, target)
            say(f"GitRepo {NAME} is registered; its cluster is the folder {target}")
        wait_for(
            f"the delivery of {commit[:12]}",
            DELIVERY_TIMEOUT,
            functools.partial(delivered, api, target, commit, text),
            functools.partial(where_it_is, api, target),
        )
        now = time.monotonic()
        since = f", {now - began:.1f} s after the start" if number == 1 else ""
        say(f"delivered the {word} commit {commit[:12]} in {now - pushed:.1f} s{since}: {text.strip()}")
    say(f"push to {repository.bare} and watch {target / NAME / 'current' / 'deploy'}. Ctrl-C ends it all.")


def register(api: Api, repository: DemoRepository, target: Path) -> None:
    """The cluster and the GitRepo, through REST; those of an earlier run go on."""
    api.make(
        "/api/v1/clusters/",
        {"name": NAME, "driver": "directory", "settings": {"path": str(target)}, "labels": {}},
    )
    api.make(
        "/api/v1/gitrepos/",
        {
            "name": NAME,
            "url": repository.url,
            "branch": "main",
            "paths": ["deploy"],
            "polling_interval": "5s",
            "targets": [{"cluster": NAME}],
        },
    )


def delivered(api: Api, target: Path, commit: str, text: str) -> bool:
    """Whether the file has arrived and `commit` is shown as Ready. The file is asked first: it costs no request."""
    try:
        if (target / NAME / FILE).read_text() != text:
            return False
    except OSError:
        return False
    code, answer = api.request("GET", f"/api/v1/gitrepos/{NAME}/")
    return code == 200 and answer["status"]["display_state"] == "Ready" and answer["status"]["commit"] == commit


def where_it_is(api: Api, target: Path) -> str:
    """What is shown and what is there, for somebody who waited in vain."""
    code, answer = api.request("GET", f"/api/v1/gitrepos/{NAME}/")
    if code != 200:
        return f"the API answered {code or 'not at all'}: {json.dumps(answer)}"
    status = answer["status"]
    file = "is there" if (target / NAME / FILE).exists() else "is not there"
    return (
        f"display state {status['display_state']}, commit {status['commit'] or 'none'}, "
        f"message {status.get('message') or status.get('last_error') or 'none'}; {target / NAME / FILE} {file}"
    )
