"""The rules of the models' fields."""

import datetime as dt
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.core.exceptions import ValidationError
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from repos import validators

SHA = "34c224acd0f1d6a9c1f5b1b1f9b0a3a1c2d3e4f5"
WRONG_TYPES: list[Any] = [None, 1, 1.5, True, [], {}, ["x"], {"x": 1}, b"x", float("nan")]
TEXT_VALIDATORS = [
    validators.validate_url,
    validators.validate_name,
    validators.validate_ref,
    validators.validate_semver_range,
    validators.validate_commit,
    validators.validate_polling_interval,
    validators.validate_ca_bundle,
]


def message(validate: Callable[[object], None], value: object) -> str:
    with pytest.raises(ValidationError) as caught:
        validate(value)
    return str(caught.value.messages[0])


# -- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", WRONG_TYPES, ids=repr)
@pytest.mark.parametrize("validate", TEXT_VALIDATORS)
def test_text_fields_refuse_what_is_no_text(validate: Callable[[object], None], value: object) -> None:
    assert message(validate, value)


@given(st.text())
@example("\ud800")
@example("\0")
def test_any_text_is_accepted_or_a_validation_error(text: str) -> None:
    for validate in TEXT_VALIDATORS:
        for value in (text, [text], {text: text}):
            try:
                validate(value)
            except ValidationError as error:
                assert len(text) < 12 or text not in error.messages[0]


@pytest.mark.parametrize("name", ["a", "0", "shop", "team-shop", "a.b", "a" * 63, "1-2.3"])
def test_a_name(name: str) -> None:
    validators.validate_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Shop",
        "shop_1",
        "-a",
        "a-",
        ".a",
        "a.",
        "a..b",
        "a.-b",
        "a-.b",
        "a b",
        "a/b",
        "a\n",
        "é",
        "a" * 64,
        "..",
        "a" * 10**6,
    ],
)
def test_no_name(name: str) -> None:
    assert "A name has at most 63 characters" in message(validators.validate_name, name)


@pytest.mark.parametrize("commit", [SHA, "0" * 39 + "1", "a" * 64])
def test_a_commit(commit: str) -> None:
    validators.validate_commit(commit)


@pytest.mark.parametrize(
    "commit", ["", "HEAD", SHA[:7], SHA.upper(), SHA + "\n", SHA + "0", "0" * 40, "0" * 64, "g" * 40]
)
def test_no_commit(commit: str) -> None:
    assert "full id" in message(validators.validate_commit, commit)


@pytest.mark.parametrize("text", ["", "0", "0s", "1s", "5s", "15s", "1h30m", "1.5s", "1000ms", "8784h"])
def test_a_polling_interval(text: str) -> None:
    validators.validate_polling_interval(text)


@pytest.mark.parametrize(
    "text",
    [
        "1d",
        "-5s",
        "1e9",
        "NaN",
        "nonsense",
        "15",
        "999ms",
        "0.5s",
        "1ms",
        "8785h",
        "\u0661\u0665s",
        " 5s",
        "5s\n",
        "-0s",
    ],
)
def test_no_polling_interval(text: str) -> None:
    assert "polling interval" in message(validators.validate_polling_interval, text)


# -- refs ----------------------------------------------------------------------------------------------------


REFS = [
    "main",
    "release/1.x",
    "v1.2.3",
    "a@b",
    "@a",
    "a@",
    "feature/#12",
    "a-",
    "a.b",
    "über",
    "x{y",
    "a'b",
    'a"b',
    "a$b",
]


REFS += [
    "$(id)",
    "a;b",
    "a|b",
    "lock",
    "a.lockb",
    "!",
    "%",
    "&",
    "x" * 255,
    "HEADS",
    "refsx",
    "a/-b",
    "a\u00a0b",
    "\u202e",
]


NO_REFS = [
    "..",
    "a..b",
    ".a",
    "a/.b",
    "a.lock",
    "a.lock/b",
    "a/",
    "/a",
    "a//b",
    "a.",
    "a b",
    "a\tb",
    "a\nb",
    "a\x7fb",
    "a~1",
]


NO_REFS += [
    "a^",
    "x^{/re}",
    "a:b",
    "main:refs/heads/x",
    "+refs/*",
    "a?",
    "a*",
    "a[b",
    "a\\b",
    "a@{b",
    "@{-1}",
    "refs/../x",
    "\x01",
]


# git takes these, or means something else by them.
OUR_OWN_NO_REFS = [
    "",
    "-x",
    "--upload-pack=touch",
    "@",
    "HEAD",
    "refs/heads/main",
    "refs/x",
    "x" * 256,
    "a\0b",
    "\udcff",
]


def git_accepts(ref: str) -> bool:
    return subprocess.run(["git", "check-ref-format", f"refs/heads/{ref}"]).returncode == 0


@pytest.mark.parametrize("ref", REFS)
def test_a_ref(ref: str) -> None:
    validators.validate_ref(ref)
    assert git_accepts(ref)


@pytest.mark.parametrize("ref", NO_REFS)
def test_no_ref(ref: str) -> None:
    assert "branch or tag" in message(validators.validate_ref, ref)
    assert not git_accepts(ref)


@pytest.mark.parametrize("ref", OUR_OWN_NO_REFS)
def test_no_ref_by_our_own_rules(ref: str) -> None:
    assert "branch or tag" in message(validators.validate_ref, ref)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab./@{}~^:?*[\\-+ lock\x7f\té", min_size=1, max_size=10))
def test_we_agree_with_git_check_ref_format(ref: str) -> None:
    if ref.startswith("-") or ref == "@":
        return
    try:
        validators.validate_ref(ref)
    except ValidationError:
        assert not git_accepts(ref)
    else:
        assert git_accepts(ref)


# -- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "deploy",
        "charts/*",
        "apps/**/prod",
        ".",
        "**",
        "a/b/c",
        ".github",
        ".gitignore",
        "a.git",
        "git",
        "git~2",
        "x[ab]y",
        "[]]",
        "[!a]",
        "a b",
        "über",
        "-rf",
        "...",
        "a/...",
        "x" * 1024,
        "*/" * 15 + "a",
        "{a,b}",
        "~",
        ".gitx/y",
    ],
)
def test_a_path(path: str) -> None:
    validators.validate_paths([path])


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("", "text"),
        (None, "text"),
        (7, "text"),
        (["a"], "text"),
        ("/", "leading /"),
        ("/etc", "leading /"),
        ("..", "stays in the repository"),
        ("../../etc", "stays in the repository"),
        ("a/../../b", "stays in the repository"),
        ("a\\..\\b", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x85b", "control"),
        ("a\x1b[1m", "control"),
        ("\ud800", "control"),
        ("./x", "./"),
        ("x/", "trailing /"),
        ("a//b", "//"),
        ("a/./b", "./"),
        (".git", ".git"),
        (".git/config", ".git"),
        ("a/.git/b", ".git"),
        (".GIT", ".git"),
        (".Git", ".git"),
        (".git ", ".git"),
        (".git. .", ".git"),
        (".git::$INDEX_ALLOCATION", ".git"),
        ("GIT~1", ".git"),
        ("git~1.", ".git"),
        (".g\u200cit", ".git"),
        ("\ufeff.git", ".git"),
        (".gi\u202et/x", ".git"),
        ("x" * 1025, "at most 1024"),
        ("*/" * 16 + "*", "wildcards"),
        ("**/" * 5 + "a", "wildcards"),
        ("a" + "*a" * 500, "wildcards"),
        ("a[b", "set of characters"),
        ("[]", "set of characters"),
    ],
)
def test_no_path(path: object, rule: str) -> None:
    found = message(validators.validate_paths, ["ok", path])
    assert found.startswith("paths[1]: ")
    assert rule in found


@pytest.mark.parametrize("paths", [[], ["."], ["a"] * 100])
def test_a_list_of_paths(paths: list[str]) -> None:
    validators.validate_paths(paths)


@pytest.mark.parametrize("paths", [None, "deploy", {"a": 1}, 7, ("a",), ["a"] * 101])
def test_no_list_of_paths(paths: object) -> None:
    assert message(validators.validate_paths, paths).startswith("paths ")


@given(st.text())
def test_an_accepted_path_stays_in_the_tree(path: str) -> None:
    try:
        validators.validate_paths([path])
    except ValidationError:
        return
    parts = path.split("/")
    assert path == "." or not {"", ".", "..", ".git"} & {part.lower() for part in parts}


# -- certificates --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def certificate(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM).decode()


def test_a_ca_bundle(certificate: str) -> None:
    for text in ("", certificate, certificate * 3, f"# ours\n{certificate}\n# end\n"):
        validators.validate_ca_bundle(text)


def test_no_ca_bundle(certificate: str, key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    cut = certificate.replace("\n", "\n!", 1)
    for text in ("x", " ", "\0", public.decode(), cut, certificate[:-40], "\ud800", certificate + cut):
        assert "PEM certificates" in message(validators.validate_ca_bundle, text)
    assert "at most 65536 bytes" in message(validators.validate_ca_bundle, certificate * 200)
    found = message(validators.validate_ca_bundle, certificate + private)
    assert "private key" in found
    assert private.split("\n")[1] not in found
