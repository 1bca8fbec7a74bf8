"""What a Git URL may be, what it is normalised to, and which URLs name the same repository."""

import subprocess
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from pytest_django.fixtures import Settings

from repos.urls import address_is_allowed, parse_git_url


@pytest.fixture(autouse=True)
def strict(settings: Settings) -> None:
    settings.GIT_ALLOW_HTTP = False
    settings.GIT_ALLOWED_NETWORKS = []
    settings.GIT_FILE_ROOT = ""


def refusal(text: object) -> tuple[str, str]:
    """The code and the message of the ValidationError that `text` meets."""
    with pytest.raises(ValidationError) as caught:
        parse_git_url(text)  # type: ignore[arg-type]
    return str(caught.value.code), caught.value.messages[0]


@pytest.mark.parametrize(
    ("text", "normalised", "host_key"),
    [
        ("https://git.example.com/team/shop.git", None, ("git.example.com", 443)),
        ("https://git.example.com/team/shop", None, ("git.example.com", 443)),
        ("HTTPS://Git.Example.COM/Team/Shop", "https://git.example.com/Team/Shop", ("git.example.com", 443)),
        ("https://git.example.com:443/x", "https://git.example.com/x", ("git.example.com", 443)),
        ("https://git.example.com:8443/x", None, ("git.example.com", 8443)),
        ("https://git.example.com./x", "https://git.example.com/x", ("git.example.com", 443)),
        ("https://git.example.com//a///b//", "https://git.example.com/a/b", ("git.example.com", 443)),
        ("https://h/a%20b/c", None, ("h", 443)),
        ("https://8.8.8.8/x", None, ("8.8.8.8", 443)),
        ("https://[2606:4700:0::1111]/x", "https://[2606:4700::1111]/x", ("2606:4700::1111", 443)),
        ("https://xn--bcher-kva.example/x", None, ("xn--bcher-kva.example", 443)),
        ("ssh://git@git.example.com/team/shop.git", None, ("git.example.com", 22)),
        ("ssh://git@git.example.com:22/x", "ssh://git@git.example.com/x", ("git.example.com", 22)),
        ("ssh://git@git.example.com:2222/~/x", None, ("git.example.com", 2222)),
        ("ssh://git.example.com/x", None, ("git.example.com", 22)),
        ("git@git.example.com:team/shop.git", None, ("git.example.com", 22)),
        ("git@GIT.example.com:team//shop.git/", "git@git.example.com:team/shop.git", ("git.example.com", 22)),
        ("git@git.example.com:~/shop.git", None, ("git.example.com", 22)),
        ("git@git.example.com:2222/shop", None, ("git.example.com", 22)),
        ("git@git.example.com:/srv/x.git", "ssh://git@git.example.com/srv/x.git", ("git.example.com", 22)),
        ("git@[2606:4700::1111]:x", None, ("2606:4700::1111", 22)),
    ],
)
def test_it_normalises(text: str, normalised: str | None, host_key: tuple[str, int]) -> None:
    url = parse_git_url(text)
    assert (url.normalised, url.host_key) == (normalised or text, host_key)


UNSUPPORTED = [
    "ext::sh -c id",
    "ext::sh",
    "EXT::sh",
    "fd::7",
    "anything::x",
    "x@ext",
    "git://h/x",
    "git+ssh://h/x",
]


UNSUPPORTED += [
    "/abs/x",
    "../rel",
    "./rel",
    "rel",
    "~/x",
    "~user/x",
    "host:path",
    "C:/x",
    "h@a@b:x",
    "ftp://h/x",
]


UNSUPPORTED += [
    "javascript:alert(1)",
    "javascript://h/%0aalert(1)",
    "data:text/html,x",
    "-oProxy",
    "--upload-pack=x",
]


CREDENTIALS = [
    "https://u:canary@h.com/x",
    "https://canary@h.com/x",
    "https://@h.com/x",
    "ssh://git:canary@h.com/x",
]


CREDENTIALS += ["https://u:p@canary@h.com/x", "https://:canary@h.com/x"]


INSIDE = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.0.1",
    "172.31.255.255",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
]


INSIDE += ["0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "168.63.129.16"]


INSIDE += [
    "2130706433",
    "0177.0.0.1",
    "0x7f.1",
    "0x7f000001",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "0",
    "1.2.3.4.5",
    "999.1.1.1",
]


INSIDE += ["017700000001", "0x7f.0.0.1", "8.8.2056", "08.8.8.8", "1.2.3.0x4"]


INSIDE += [
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:10.0.0.1]",
    "[::127.0.0.1]",
]


INSIDE += [
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[fc00::1]",
    "[ff02::1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::10.0.0.1]",
]


INSIDE += ["[2002:7f00:1::]", "[2001:db8::1]", "[2001::1]", "[64:ff9b:1::1]", "[fec0::1]"]


INSIDE += ["localhost", "LOCALHOST", "localhost.", "a.localhost", "localhost.localdomain", "ip6-localhost"]


INSIDE += [
    "metadata.google.internal",
    "METADATA.google.internal.",
    "metadata",
    "instance-data",
    "metadata.goog",
]


@pytest.mark.parametrize("text", UNSUPPORTED)
def test_a_transport_that_is_not_listed_is_refused(text: str) -> None:
    assert refusal(text)[0] in ("unsupported", "characters")


@pytest.mark.parametrize(
    "text", [" ext::sh", "\next::sh", "https://h/x\n", "https://h/\rx", "https://h/a b", "https://h/\0"]
)
@pytest.mark.parametrize("prefix", ["", "\t", "\x7f", "\u200b"])
def test_characters_that_are_not_printable_ascii_are_refused(text: str, prefix: str) -> None:
    assert refusal(prefix + text)[0] == "characters"


@pytest.mark.parametrize(
    "text",
    [
        "https://bücher.example/x",
        "https://①②⑦.0.0.1/x",
        "https://h/é",
        "git@hóst:x",
        "C:\\x",
        "\\\\unc\\x",
        "https://h/a\\b",
        "https://h/${HOME}",
        "https://$HOST/x",
        "git@h:$X",
        "https://h/`id`",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str) -> None:
    assert refusal(text)[0] == "characters"


@pytest.mark.parametrize("text", CREDENTIALS)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    code, message = refusal(text)
    assert code == "credentials"
    assert "canary" not in message


@pytest.mark.parametrize(
    "text",
    [
        "https://h/x?private_token=canary",
        "https://h/x?access_token=canary",
        "https://h/x?",
        "https://h/x#canary",
        "https://h?canary",
    ],
)
def test_a_query_is_refused_and_not_repeated(text: str) -> None:
    code, message = refusal(text)
    assert code == "query"
    assert "canary" not in message


@pytest.mark.parametrize("host", INSIDE)
@pytest.mark.parametrize("form", ["https://{}/x", "https://{}:8443/x", "ssh://git@{}/x", "git@{}:x"])
def test_an_inside_host_is_refused_in_any_notation(host: str, form: str) -> None:
    code, message = refusal(form.format(host))
    assert code == "address"
    assert host not in message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "required"),
        (None, "required"),
        (7, "required"),
        (b"https://h/x", "required"),
        ("https:///h/x", "host"),
        ("https://-h/x", "host"),
        ("https://h-/x", "host"),
        ("https://a..b/x", "host"),
        ("https://h%2e/x", "host"),
        ("https://[::1/x", "host"),
        ("https://[zz]/x", "host"),
        ("https://[fe80::1%25eth0]/x", "host"),
        ("https://" + "a" * 64 + ".com/x", "host"),
        ("https://" + "a." * 130 + "com/x", "host"),
        ("ssh://-oProxyCommand=x/y", "host"),
        ("ssh://%2doProxyCommand=x/y", "host"),
        ("ssh://-oProxyCommand@h/y", "user"),
        ("ssh://@h/y", "user"),
        ("ssh://a%40b@h/y", "user"),
        ("-oProxyCommand=x@h:y", "user"),
        ("user@-oProxy:x", "host"),
        ("https://h:99999/x", "port"),
        ("https://h:0/x", "port"),
        ("https://h:/x", "port"),
        ("https://h:22x/x", "port"),
        ("https://h:+22/x", "port"),
        ("ssh://git@h:team/x", "port"),
        ("https://h", "path"),
        ("https://h//", "path"),
        ("git@h:/", "path"),
        ("https://h/-x", "path"),
        ("git@h:-x", "path"),
        ("git@h:%2dx", "path"),
        ("git@h::x", "path"),
        ("https://h/a/../b", "path"),
        ("https://h/a/%2e%2E/b", "path"),
        ("git@h:../x", "path"),
        ("https://h/./b", "path"),
        ("https://h/%PATH%", "path"),
        ("https://h/a%", "path"),
        ("https://h/a%0ab", "path"),
        ("https://h/a%00b", "path"),
        ("https://h/a%5cb", "path"),
        ("https://h/<b>", "path"),
        ("https://h/a|b", "path"),
        ("https://h/" + "x" * 2040, "too_long"),
        ("u@h:/" + "x" * 2043, "too_long"),
        ("http://git.example.com/x", "http"),
        ("file:///srv/x", "file"),
    ],
)
def test_it_refuses(text: object, code: str) -> None:
    assert refusal(text)[0] == code


def test_http_is_a_setting(settings: Settings) -> None:
    settings.GIT_ALLOW_HTTP = True
    assert parse_git_url("http://git.example.com:80/x").normalised == "http://git.example.com/x"
    assert parse_git_url("http://git.example.com/x").host_key == ("git.example.com", 80)


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ip", ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_allowed(ip: str) -> None:
    assert address_is_allowed(ip)


@pytest.mark.parametrize("ip", ["fe80::1%eth0", "", "h", "127.1", "8.8.8.8/32", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1"])
def test_another_is_not(ip: str) -> None:
    assert not address_is_allowed(ip)


@pytest.mark.parametrize(
    ("networks", "hosts"),
    [
        (["127.0.0.0/8"], ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"]),
        (["::1/128"], ["[::1]", "localhost"]),
        (["10.0.0.0/8", " 192.168.1.7/24 "], ["10.9.8.7", "192.168.1.1"]),
        (["169.254.169.254/32"], ["metadata.google.internal"]),
    ],
)
def test_an_install_lists_the_networks_that_it_trusts(
    settings: Settings, networks: list[str], hosts: list[str]
) -> None:
    settings.GIT_ALLOWED_NETWORKS = networks
    for host in hosts:
        assert parse_git_url(f"https://{host}/x").scheme == "https"
    assert refusal("https://172.16.0.1/x")[0] == "address"


def test_a_trusted_network_does_not_make_another_notation_readable(settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    assert refusal("https://2130706433/x")[0] == "address"


def test_a_list_of_networks_that_is_none_says_so(settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = ["10.0.0.0/99"]
    with pytest.raises(ImproperlyConfigured, match="GIT_ALLOWED_NETWORKS"):
        address_is_allowed("10.0.0.1")


# -- file ----------------------------------------------------------------------------------------------------


def test_a_file_url_leads_below_the_root(settings: Settings, tmp_path: Path) -> None:
    root = tmp_path / "my root"
    (root / "sub").mkdir(parents=True)
    (root / "inside").symlink_to(root / "sub")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    settings.GIT_FILE_ROOT = str(root)
    base = "file://" + str(root).replace(" ", "%20")
    url = parse_git_url(f"{base}//sub/x.git/")
    assert url.normalised == f"{base}/sub/x.git"
    assert (url.host_key, url.local_path) == (("", 0), root / "sub" / "x.git")
    assert parse_git_url(f"{base}/inside/x").normalised == f"{base}/inside/x"
    for path in ("", "/", "/out", "/out/x", "/loop", "/loop/x", "/%ff"):
        assert refusal(base + path)[0] == "file"
    for path in ("/../x", "/%2e%2e/x", "/a%00b"):
        assert refusal(base + path)[0] == "path"
    assert refusal(f"file://{tmp_path}/other")[0] == "file"
    assert refusal(f"file://{tmp_path}/my%20root-beside/x")[0] == "file"
    assert refusal(f"file://localhost{tmp_path}/x")[0] == "host"


def test_git_reads_a_file_url_as_we_do(settings: Settings, tmp_path: Path) -> None:
    settings.GIT_FILE_ROOT = str(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path / "a b")], check=True)
    url = parse_git_url(f"file://{tmp_path}/a%20b/")
    answer = subprocess.run(["git", "ls-remote", url.normalised], capture_output=True, text=True)
    assert (answer.returncode, url.local_path.is_dir()) == (0, True), answer.stderr
