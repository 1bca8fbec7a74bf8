import os
import shlex
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from pytest_django import Settings

from repos.urls import parse_git_url
from tests.git_servers import GitServer, Repository, _Handler, _Http, git
from tests.workers.fetch.conftest import Fetch
from workers import git_environment as module
from workers.fetch.errors import GitError
from workers.fetch.mirror import Mirror
from workers.git_environment import (
    AccessError,
    RemoteAccess,
    check_access,
    git_environment,
    local_environment,
    sweep_run_folder,
)

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nY2FuYXJ5\n-----END OPENSSH PRIVATE KEY-----\n"
HOSTS = "git.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGv\n"
SSH = RemoteAccess("ssh://git@git.example.com/team/shop.git", "ssh", "git", KEY, HOSTS)
HTTPS = RemoteAccess("https://git.example.com/shop.git", "token", "", "canary")


def config_of(env: dict[str, str]) -> dict[str, str]:
    count = int(env["GIT_CONFIG_COUNT"])
    return {env[f"GIT_CONFIG_KEY_{n}"]: env[f"GIT_CONFIG_VALUE_{n}"] for n in range(count)}


def test_it_is_complete_and_clean(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "SSH_AUTH_SOCK", "SECRET_KEY", "LD_LIBRARY_PATH", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")

    with git_environment(RemoteAccess("https://git.example.com/shop.git"), run_folder) as environment:
        env = environment.env
        assert "canary" not in env.values()
        assert env["HTTPS_PROXY"] == "http://proxy.example.com:3128"
        assert list(Path(env["HOME"]).iterdir()) == []
        assert env["GIT_TERMINAL_PROMPT"] == "0"
        assert (env["GIT_CONFIG_NOSYSTEM"], env["GIT_CONFIG_GLOBAL"]) == ("1", os.devnull)
        config = config_of(env)
        assert config["core.hooksPath"] == os.devnull
        assert config["http.followRedirects"] == "false"
        assert config["fetch.fsckObjects"] == "true"
        assert "http.extraHeader" not in config


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("https://h/x", "https"),
        ("http://h/x", "http"),
        ("ssh://git@h/x", "ssh"),
        ("git@h:x/y.git", "ssh"),
        ("file:///srv/x", "file"),
    ],
)
def test_only_the_scheme_in_use_is_allowed(url: str, scheme: str, run_folder: Path) -> None:
    access = RemoteAccess(url, known_hosts=HOSTS if scheme == "ssh" else "")
    with git_environment(access, run_folder) as environment:
        assert environment.env["GIT_ALLOW_PROTOCOL"] == scheme


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("git@git.example.com:team/shop.git", ("git.example.com", 0)),
        ("a+b@git.example.com:team/shop.git", ("git.example.com", 0)),
        ("git@[2001:db8::1]:team/shop.git", ("2001:db8::1", 0)),
        ("git@_git.example.com:team/shop.git", ("_git.example.com", 0)),
        ("ssh://a+b@[2001:db8::1]:2222/team/shop.git", ("2001:db8::1", 2222)),
    ],
)
def test_what_may_be_registered_may_be_asked(
    url: str, host: tuple[str, int], run_folder: Path, settings: Settings
) -> None:
    settings.GIT_ALLOWED_NETWORKS = ["2001:db8::/32"]
    access = RemoteAccess(parse_git_url(url).normalised, known_hosts=HOSTS)
    assert (access.scheme, access.host) == ("ssh", host)
    with git_environment(access, run_folder) as environment:
        assert environment.env["GIT_ALLOW_PROTOCOL"] == "ssh"


@pytest.mark.parametrize(
    ("url", "cause"), [("git@10.0.0.1:team/shop.git", "address"), ("git@git.example.com:../shop.git", "url")]
)
def test_what_may_not_be_registered_is_not_asked(url: str, cause: str, settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = []
    with pytest.raises(AccessError) as caught:
        check_access(RemoteAccess(url, known_hosts=HOSTS))
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    "url", ["ext::sh", "EXT::sh", " https://h/x", "git://h/x", "/srv/x", "h", "-x:y", "", "a:", "HTTPS://h"]
)
def test_no_other_scheme_is(url: str, run_folder: Path) -> None:
    with pytest.raises(AccessError), git_environment(RemoteAccess(url), run_folder):
        pass
    assert not list(run_folder.glob("*"))


@pytest.mark.parametrize(
    ("access", "cause"),
    [
        (RemoteAccess(SSH.url, "ssh", "git", KEY), "host-key"),
        (RemoteAccess(SSH.url, "ssh", "git", KEY, "  \n"), "host-key"),
        (RemoteAccess(SSH.url), "host-key"),
        (RemoteAccess(SSH.url, "ssh", "git", "", HOSTS), "credential"),
        (RemoteAccess(SSH.url, "token", "", "canary", HOSTS), "credential"),
        (RemoteAccess("https://h/x", "ssh", "git", KEY, HOSTS), "credential"),
        (RemoteAccess("file:///x", "basic", "a", "canary"), "credential"),
        (RemoteAccess("https://h/x", "magic", "a", "canary"), "credential"),
        (RemoteAccess("https://h/x\ny"), "url"),
    ],
)
def test_a_contradiction_is_refused_before_git_starts(access: RemoteAccess, cause: str, run_folder: Path) -> None:
    with pytest.raises(AccessError) as caught, git_environment(access, run_folder):
        pass
    assert caught.value.cause == cause
    assert "canary" not in str(caught.value)


def test_the_room_of_fetching_says_it_too(mirror: Mirror, run_folder: Path, fetch: Fetch) -> None:
    with pytest.raises(GitError) as caught:
        fetch(RemoteAccess(SSH.url, "ssh", "git", KEY), "1" * 40)
    assert caught.value.cause == "host-key"


def test_a_secret_is_in_no_representation(run_folder: Path) -> None:
    with git_environment(HTTPS, run_folder) as environment:
        assert "canary" not in repr(HTTPS) + repr(environment)
        assert "Y2FuYXJ5" not in repr(SSH)


def test_the_token_is_a_header(run_folder: Path) -> None:
    with git_environment(HTTPS, run_folder) as environment:
        # printf git:canary | base64
        assert config_of(environment.env)["http.extraHeader"] == "Authorization: Basic Z2l0OmNhbmFyeQ=="
        assert set(environment.secrets) == {"canary", "Z2l0OmNhbmFyeQ=="}


@pytest.mark.parametrize(
    ("url", "address", "entry"),
    [
        ("https://git.example.com/x", "192.0.2.7", "git.example.com:443:192.0.2.7"),
        ("http://git.example.com:8080/x", "2001:db8::1", "git.example.com:8080:[2001:db8::1]"),
        ("https://192.0.2.7/x", "192.0.2.7", None),
        ("https://[2001:db8::1]/x", "2001:db8::1", None),
    ],
)
def test_the_address_that_was_checked_is_told_where_there_is_a_name(
    url: str, address: str, entry: str | None, run_folder: Path
) -> None:
    with git_environment(RemoteAccess(url, addresses=(address,)), run_folder) as environment:
        assert config_of(environment.env).get("http.curloptResolve") == entry


def test_a_server_without_a_name(root: Path, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
    commit = repository.commit({"a": "x"})

    class SixHttp(_Http):
        address_family = socket.AF_INET6

    class Handler(_Handler):
        git_server = GitServer(root)

    try:
        http = SixHttp(("::1", 0), Handler)
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error.strerror}")
    with http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            fetch(RemoteAccess(f"http://[::1]:{http.server_port}/shop.git", addresses=("::1",)), commit)
        finally:
            http.shutdown()

    assert mirror.refs() == {"1": commit}


class TestFiles:
    def test_a_key_is_0600_below_a_0700_folder_and_gone_afterwards(self, run_folder: Path) -> None:
        with git_environment(SSH, run_folder):
            (folder,) = run_folder.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            for name in ("key", "known_hosts"):
                assert (folder / name).stat().st_mode & 0o777 == 0o600
            assert (folder / "key").read_text() == KEY
        assert list(run_folder.iterdir()) == []

    def test_it_is_gone_after_an_error(self, run_folder: Path) -> None:
        with pytest.raises(KeyError), git_environment(SSH, run_folder):
            raise KeyError
        assert list(run_folder.iterdir()) == []

    def test_a_sweep_removes_what_a_dead_worker_left_and_nothing_in_use(
        self, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SWEEP_GRACE_SECONDS", 0)
        left = run_folder / "git-left"
        left.mkdir(parents=True)
        (left / "key").write_text(KEY)
        (run_folder / "other").mkdir()
        with git_environment(SSH, run_folder):
            assert sweep_run_folder(run_folder) == 1
            assert sorted(p.name[:4] for p in run_folder.iterdir()) == ["git-", "othe"]
        assert not left.exists()

    def test_a_sweep_leaves_a_folder_that_is_just_being_made(self, run_folder: Path) -> None:
        (run_folder / "git-new").mkdir(parents=True)
        assert sweep_run_folder(run_folder) == 0
        past = time.time() - 100
        os.utime(run_folder / "git-new", (past, past))
        assert sweep_run_folder(run_folder) == 1

    def test_nothing_to_sweep(self, run_folder: Path) -> None:
        assert sweep_run_folder(run_folder) == 0


class TestSsh:
    """`ssh -G` prints what ssh makes of its options; nothing is connected to."""

    def options(self, access: RemoteAccess, run_folder: Path) -> dict[str, str]:
        with git_environment(access, run_folder) as environment:
            env = environment.env
            words = shlex.split(env["GIT_SSH_COMMAND"])
            # Through a shell, as git does it.
            done = subprocess.run(
                ["sh", "-c", env["GIT_SSH_COMMAND"] + " -G git.example.com"],
                env=env,
                capture_output=True,
                text=True,
            )
            assert words[:3] == ["ssh", "-F", "/dev/null"]
        assert done.returncode == 0, done.stderr
        return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)

    def test_the_host_must_be_known(self, run_folder: Path) -> None:
        options = self.options(SSH, run_folder)
        assert options["stricthostkeychecking"] == "true"
        assert options["userknownhostsfile"].startswith(str(run_folder))
        assert options["globalknownhostsfile"] == "/dev/null"
        assert options["batchmode"] == "yes"
        assert options["identityagent"] == "none"
        assert options["identitiesonly"] == "yes"
        assert options["identityfile"].endswith("/key")
        assert options["passwordauthentication"] == "no"
        assert options.get("proxycommand", "none") == "none"
        assert options["forwardagent"] == "no"

    def test_the_checked_address_is_connected_to_under_the_hosts_own_key(self, run_folder: Path) -> None:
        pinned = RemoteAccess(SSH.url, "ssh", "git", KEY, HOSTS, addresses=("192.0.2.7",))
        options = self.options(pinned, run_folder)
        assert options["hostname"] == "192.0.2.7"
        assert options["hostkeyalias"] == "git.example.com"

    def test_another_port_is_part_of_the_hosts_name(self, run_folder: Path) -> None:
        pinned = RemoteAccess("ssh://git@h:2222/x", "ssh", "git", KEY, HOSTS, addresses=("192.0.2.7",))
        assert self.options(pinned, run_folder)["hostkeyalias"] == "[h]:2222"

    @pytest.mark.parametrize("name", ["a b", "100%", "it's", 'say "x"', "$(touch x)"])
    def test_any_folder_will_do(self, name: str, tmp_path: Path) -> None:
        if '"' in name:
            pytest.skip("OpenSSH has no way to write a quotation mark in a path")
        options = self.options(SSH, tmp_path / name)
        # ssh -G prints the user's known hosts as given, so %% is what stands for one %.
        assert options["userknownhostsfile"].replace("%%", "%").startswith(str(tmp_path / name))


class TestHostileSurroundings:
    """Nothing but what is passed in has an effect: each of these would leave a file behind."""

    def test_configuration_and_variables_have_no_effect(
        self,
        tmp_path: Path,
        repository: Repository,
        server: GitServer,
        mirror: Mirror,
        fetch: Fetch,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trap = tmp_path / "trapped"
        script = tmp_path / "trap.sh"
        script.write_text(f"#!/bin/sh\ntouch {trap}\nexit 1\n")
        script.chmod(0o755)
        home = tmp_path / "home"
        (home / "hooks").mkdir(parents=True)
        for hook in ("reference-transaction", "post-checkout", "post-index-change"):
            (home / "hooks" / hook).symlink_to(script)
        config = home / ".gitconfig"
        for key, value in {
            "core.hooksPath": str(home / "hooks"),
            "core.fsmonitor": str(script),
            "core.sshCommand": str(script),
            "core.askPass": str(script),
            "credential.helper": f"!{script}",
            "http.proxy": "http://127.0.0.1:1",
            "url.http://127.0.0.1:1/.insteadOf": server.address,
            "fetch.fsckObjects": "false",
        }.items():
            git("config", "--file", str(config), key, value)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
        monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(config))
        monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'http.proxy=http://127.0.0.1:1'")
        for name in (
            "GIT_SSH",
            "GIT_ASKPASS",
            "SSH_ASKPASS",
            "GIT_PROXY_COMMAND",
            "GIT_EXEC_PATH",
            "GIT_EDITOR",
        ):
            monkeypatch.setenv(name, str(script))
        for name in ("GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_DIR"):
            monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
        monkeypatch.setenv("GIT_TRACE", str(trap))
        monkeypatch.setenv("GIT_CURL_VERBOSE", "1")

        commit = repository.commit({"a": "x"})
        fetch(server.url(repository), commit)
        server.password = "x"
        with pytest.raises(GitError):
            fetch(server.url(repository), "1" * 40)

        assert mirror.refs() == {"1": commit}
        assert not trap.exists()
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize("what", ["config", "hooks", "alternates", "worktree config"])
    def test_what_somebody_put_into_the_mirror_has_no_effect(
        self,
        what: str,
        tmp_path: Path,
        repository: Repository,
        server: GitServer,
        mirror: Mirror,
        fetch: Fetch,
    ) -> None:
        fetch(server.url(repository), repository.commit({"a": "x"}))
        trap = tmp_path / "trapped"
        script = tmp_path / "trap.sh"
        script.write_text(f"#!/bin/sh\ntouch {trap}\nexit 1\n")
        script.chmod(0o755)
        match what:
            case "config":
                for key, value in {
                    "core.hooksPath": str(tmp_path),
                    "core.fsmonitor": str(script),
                    "core.gitProxy": str(script),
                    "url.http://127.0.0.1:1/.insteadOf": server.address,
                    "remote.origin.uploadpack": str(script),
                    "remote.origin.vcs": "ext",
                    "include.path": str(tmp_path / "more"),
                }.items():
                    git("config", key, value, folder=mirror.folder)
            case "hooks":
                (mirror.folder / "hooks").mkdir()
                (mirror.folder / "hooks/reference-transaction").symlink_to(script)
            case "alternates":
                (mirror.folder / "objects/info/alternates").write_text(str(repository.folder / "objects"))
            case "worktree config":
                (mirror.folder / "config.worktree").write_text(f"[core]\n\tfsmonitor = {script}\n")
        commit = repository.commit({"a": "y"})

        fetch(server.url(repository), commit)

        assert mirror.refs() == {"1": commit}
        assert not trap.exists()
        with mirror.reader(deadline_seconds=5) as reader:
            assert reader.tree(reader.root_tree(commit))


def test_local_commands_may_reach_nothing() -> None:
    env = local_environment()
    assert env["GIT_ALLOW_PROTOCOL"] == "none"
    assert env["HOME"] == os.devnull
