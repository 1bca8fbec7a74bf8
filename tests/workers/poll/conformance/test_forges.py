"""The forges' own styles of URL and answer: what each says when all is well, and what it says instead of an error."""

import pytest

from tests.core import A, B
from tests.workers.poll.conformance.answers import (
    AZURE_V0,
    GITEA,
    GITHUB,
    GITLAB,
    GOOD,
    HEAD,
    JGIT,
    MAIN,
    OLD_GIT,
    PLAIN,
    discovery,
    listed,
    result,
    status,
    v0,
    v2,
)
from tests.workers.poll.conformance.case import Case
from tests.workers.poll.conformance.conftest import Play
from tests.workers.poll.conformance.stand_in import Reply

TOKEN = {"kind": "token", "secret": "t0p-s3cret-value"}
QUESTION = "/info/refs?service=git-upload-pack"
NO_CACHE = [
    "Cache-Control: no-cache, max-age=0, must-revalidate",
    "Expires: Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma: no-cache",
]
BOTH = {HEAD: A, MAIN: A}
LIST = (result(listed(f"{A} HEAD symref-target:refs/heads/main", f"{A} {MAIN}"), headers=NO_CACHE),)
OLD_LIST = [(HEAD, A), (MAIN, A), ("refs/pull-requests/1/from", B)]
SIGN_IN = b"<!DOCTYPE html><html lang=en><title>Sign In</title><body>Azure DevOps Services | Sign In</body></html>"


def moved(place: str, line: str = "301 Moved Permanently") -> Reply:
    return status(line, f"Location: {place}", body=b"", kind="text/html")


def unauthorized(*challenges: str, body: bytes = b"", kind: str = "text/plain") -> Reply:
    return status("401 Unauthorized", *(f"WWW-Authenticate: {said}" for said in challenges), body=body, kind=kind)


def well(
    name: str, path: str, capabilities: tuple[str, ...], object_format: str = "sha1", *, service: bool = True
) -> Case:
    """A forge that speaks version 2: asked once what it speaks, and then for its refs alone."""
    get = (discovery(v2(*capabilities, service=service), headers=NO_CACHE),)
    return Case(name, get, LIST, (HEAD, MAIN), [BOTH] * 3, ("GET POST", "POST", "POST"), path=path,
                object_format=object_format)  # fmt: skip


FORGES = [
    well("GitHub", "team/shop", GITHUB),
    well("GitHub with .git", "team/shop.git", GITHUB),
    well("GitLab, a group in a group", "group/sub.group/team/shop.git", GITLAB),
    well("Gitea and Forgejo", "team/shop.git", GITEA),
    well("Bitbucket Cloud", "team/shop.git", GITHUB),
    well("Bitbucket Data Center", "scm/prj/shop.git", OLD_GIT, ""),
    well("Bitbucket, a person's", "scm/~ada/shop.git", OLD_GIT, ""),
    well("Gerrit", "a/plugins/shop", JGIT, "", service=False),
    Case("Bitbucket Server before version 2", (discovery(v0(OLD_LIST), headers=NO_CACHE),), asked=(HEAD, MAIN),
         says=[BOTH] * 2, sent=("GET", "GET"), path="scm/prj/shop.git"),
    # Azure has no version 2, whatever is asked for.
    Case("Azure DevOps", (discovery(v0(OLD_LIST[:2], AZURE_V0), headers=NO_CACHE),), asked=(HEAD, MAIN), says=[BOTH] * 3,
         sent=("GET", "GET", "GET"), path="org/Big%20Project/_git/Shop"),
    Case("Azure DevOps Server", (discovery(v0(OLD_LIST[:2], AZURE_V0)),), asked=(MAIN,), says=[PLAIN] * 2,
         sent=("GET", "GET"), path="tfs/DefaultCollection/_git/Shop"),
    Case("Azure DevOps, an empty repository", (discovery(v0([], AZURE_V0)),), asked=(HEAD, MAIN), says=[{}],
         sent=("GET",), path="org/project/_git/empty"),
    Case("AWS CodeCommit", (discovery(v0(OLD_LIST[:2], AZURE_V0)),), asked=(MAIN,), says=[PLAIN], sent=("GET",),
         path="v1/repos/shop"),
    # GitLab and Gitea know a repository by its name with .git, and redirect the first question alone.
    Case("GitLab without .git", (moved("{address}/team/shop.git" + QUESTION), discovery(v2(*GITLAB))), (GOOD,),
         says=[PLAIN] * 3, sent=("GET GET POST", "POST", "POST"), path="team/shop"),
    Case("GitHub, a repository that was renamed", (moved("{address}/new/shop.git" + QUESTION), discovery()), (GOOD,),
         says=[PLAIN] * 2, sent=("GET GET POST", "POST"), path="old/shop.git"),
    Case("Gitea, a repository that was renamed",
         (moved("/new/shop/info/refs?service=git-upload-pack", "307 Temporary Redirect"), discovery(v2(*GITEA))), (GOOD,),
         says=[PLAIN] * 2, sent=("GET GET POST", "POST"), path="old/shop.git"),
]  # fmt: skip

REFUSALS = [
    Case("GitHub, private or not there", (unauthorized('Basic realm="GitHub"', body=b"Repository not found."),),
         says=["authentication"], sent=("GET",)),
    Case("GitHub, not there for this token", (status("404 Not Found", body=b"Repository not found."),), says=["not-found"],
         sent=("GET",), access=TOKEN),
    Case("GitHub, a token without single sign-on",
         (status("403 Forbidden", body=b"The 'team' organization has enabled or enforced SAML SSO."),), says=["refused"],
         sent=("GET",), access=TOKEN),
    Case("GitHub, too many requests", (status("403 Forbidden", "Retry-After: 60"),), says=["refused"], sent=("GET",)),
    Case("GitHub, a repository that is disabled",
         (status("403 Forbidden", body=b"Repository 'team/shop' is disabled."),), says=["refused"], sent=("GET",)),
    Case("GitLab, private or not there",
         (unauthorized('Basic realm="GitLab"', body=b"HTTP Basic: Access denied. If a password was provided"),),
         says=["authentication"], sent=("GET",)),
    Case("GitLab, too many requests", (status("429 Too Many Requests", "Retry-After: 60", body=b"Retry later\n"),),
         says=["rate-limit"], sent=("GET",)),
    Case("GitLab, sent to its sign-in page", (moved("{address}/users/sign_in", "302 Found"),), says=["redirect"],
         sent=("GET",), git=False),
    Case("GitLab, being updated",
         (status("502 Bad Gateway", body=b"<h1>502</h1>GitLab is taking too much time", kind="text/html"),),
         says=["server"], sent=("GET",)),
    Case("Gitea, private or not there", (unauthorized('Basic realm="Gitea"'),), says=["authentication"], sent=("GET",)),
    Case("Bitbucket, a wrong token", (unauthorized('Basic realm="Atlassian Bitbucket"'),), says=["authentication"],
         sent=("GET",), access=TOKEN),
    Case("Bitbucket, after too many wrong ones",
         (status("403 Forbidden", "X-Authentication-Denied-Reason: CAPTCHA_CHALLENGE; login-url=http://bitbucket/login"),),
         says=["refused"], sent=("GET",), access=TOKEN),
    Case("Azure DevOps, nobody known",
         (unauthorized("Bearer authorization_uri=https://login.microsoftonline.com/x", 'Basic realm="https://dev.azure.com/"',
                       "TFS-Federated", body=SIGN_IN, kind="text/html; charset=utf-8"),), says=["authentication"],
         sent=("GET",), path="org/project/_git/shop"),
    # A token that is over: a page to sign in at, with a status that says all is well.
    Case("Azure DevOps, a token that is over",
         (status("203 Non-Authoritative Information", body=SIGN_IN, kind="text/html; charset=utf-8"),), says=["not-git"],
         sent=("GET",), path="org/project/_git/shop", access=TOKEN, git=False),
    Case("Azure DevOps, sent to sign in elsewhere",
         (moved("https://spsprodeus21.vssps.visualstudio.com/_signin?realm=dev.azure.com", "302 Found"),), says=["redirect"],
         sent=("GET",), path="org/project/_git/shop", access=TOKEN, git=False),
    Case("Azure DevOps, asks for patience", (status("429 Too Many Requests", "Retry-After: 30", "X-RateLimit-Delay: 2"),),
         says=["rate-limit"], sent=("GET",), path="org/project/_git/shop", access=TOKEN),
    Case("AWS CodeCommit, a wrong credential", (status("403 Forbidden", "x-amzn-RequestId: 1"),), says=["refused"],
         sent=("GET",), path="v1/repos/shop", access=TOKEN),
    Case("Gerrit, nobody known", (unauthorized('Basic realm="Gerrit Code Review"', body=b"Unauthorized"),),
         says=["authentication"], sent=("GET",), path="a/shop"),
]  # fmt: skip


@pytest.mark.parametrize("case", FORGES, ids=lambda case: case.name)
def test_when_all_is_well(case: Case, play: Play) -> None:
    play(case)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_what_is_said_instead(case: Case, play: Play) -> None:
    play(case)
