"""Which URLs name the same repository, and what any text does."""

import pytest
from django.core.exceptions import ValidationError
from django.test import override_settings
from hypothesis import example, given
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from repos.urls import match_key_of, parse_git_url


@pytest.fixture(autouse=True)
def strict(settings: Settings) -> None:
    settings.GIT_ALLOW_HTTP = False
    settings.GIT_ALLOWED_NETWORKS = []
    settings.GIT_FILE_ROOT = ""


# -- comparing -----------------------------------------------------------------------------------------------


SAME = [
    [
        "https://git.example.com/team/repo1",
        "https://GIT.example.com/team/repo1.git",
        "https://git.example.com:443/team/repo1/",
        "https://somebody@git.example.com/team/repo1",
        "http://git.example.com/team/repo1.git",
        "ssh://git@git.example.com/team/repo1.git",
        "ssh://git@git.example.com:22/team/repo1.git",
        "git@git.example.com:team/repo1.git",
        "git@git.example.com:/team/repo1.git",
    ],
    ["https://git.example.com/team/repo1-suffix", "git@git.example.com:team/repo1-suffix.git"],
    ["https://git.example.com/Team/repo1"],
    ["https://git.example.com:8443/team/repo1", "ssh://git.example.com:8443/team/repo1.git"],
    ["https://git.example.com/team/repo1.x"],
    ["https://git.example.com/team/repo1.*"],
    ["https://git.example.com/prefix/team/repo1"],
    [
        "https://github.com/Team/Shop",
        "git@github.com:team/shop.git",
        "ssh://git@ssh.github.com:443/team/shop.git",
    ],
    [
        "https://dev.azure.com/Org/My%20Project/_git/Shop",
        "https://org@dev.azure.com/Org/My%20Project/_git/Shop",
        "https://org.visualstudio.com/My%20Project/_git/Shop",
        "https://org.visualstudio.com/DefaultCollection/My%20Project/_git/Shop",
        "git@ssh.dev.azure.com:v3/Org/My%20Project/Shop",
        "ssh://git@ssh.dev.azure.com/v3/Org/My%20Project/Shop",
        "org@vs-ssh.visualstudio.com:v3/Org/My%20Project/Shop",
    ],
    [
        "https://dev.azure.com/org/_git/tools",
        "https://org.visualstudio.com/_git/tools",
        "git@ssh.dev.azure.com:v3/org/tools/tools",
    ],
]


@pytest.mark.parametrize("urls", SAME, ids=lambda urls: urls[0])
def test_the_forms_of_one_repository_have_one_key(urls: list[str]) -> None:
    assert len({match_key_of(url) for url in urls}) == 1
    assert match_key_of(urls[0])


def test_different_repositories_have_different_keys() -> None:
    assert len({match_key_of(urls[0]) for urls in SAME}) == len(SAME)


@pytest.mark.parametrize(
    "text", ["", "x", "ext::x", "https://h/${X}", "https://h:x/y", None, 7, "https://dev.azure.com"]
)
def test_what_is_no_url_has_no_key_or_a_harmless_one(text: str) -> None:
    assert match_key_of(text) in (None, "dev.azure.com/")


def test_a_parsed_url_has_the_same_key() -> None:
    for urls in SAME:
        for url in urls:
            try:
                parsed = parse_git_url(url)
            except ValidationError:
                continue
            assert parsed.match_key == match_key_of(url)


# -- any text ------------------------------------------------------------------------------------------------


PIECES = [
    "https://",
    "ssh://",
    "http://",
    "file://",
    "git@",
    "user:pw@",
    "h",
    "git.example.com",
    "[::1]",
    "[",
    "]",
    ":",
    "/",
]


PIECES += [
    "//",
    ".",
    "..",
    "~",
    "-",
    "%20",
    "%2e",
    "%",
    "x",
    "x.git",
    "22",
    ":8443",
    "127.1",
    "::",
    "@",
    "?",
    "#",
    "$",
    "\n",
    "é",
    "_git",
]


texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=9).map("".join))


@given(texts)
@example("git@h:a//")
@example("ssh://h//~//x/")
def test_any_text_is_a_url_that_normalises_to_itself_or_a_validation_error(text: str) -> None:
    with override_settings(GIT_ALLOW_HTTP=True, GIT_FILE_ROOT="/"):
        match_key_of(text)
        try:
            url = parse_git_url(text)
        except ValidationError as error:
            assert len(text) < 12 or text not in error.messages[0]
            return
        again = parse_git_url(url.normalised)
    assert again.normalised == url.normalised
    assert again.host_key == url.host_key
    assert again.match_key == url.match_key
    assert not url.normalised.startswith("-")
    assert url.normalised.isascii()
    assert url.normalised.isprintable()
