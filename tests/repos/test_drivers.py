"""The settings of the drivers."""

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from repos.drivers import DRIVERS, validate_driver_settings


@pytest.fixture
def root(settings: Settings, tmp_path: Path) -> Path:
    folder = tmp_path / "the root"
    folder.mkdir()
    settings.DELIVERY_DIRECTORY_ROOT = str(folder)
    return folder


def message(given_settings: Any, driver: Any = "directory") -> str:
    with pytest.raises(ValidationError) as caught:
        validate_driver_settings(driver, given_settings)
    return str(caught.value.messages[0])


def test_defaults_are_filled_in(root: Path) -> None:
    given_settings = {"path": f"{root}/prod-eu"}
    assert validate_driver_settings("directory", given_settings) == {
        "path": f"{root}/prod-eu",
        "keep_releases": 3,
    }
    assert given_settings == {"path": f"{root}/prod-eu"}


@pytest.mark.parametrize("name", ["a", "a/b.c/d_e-f", "0", "_x", "x" * 128])
@pytest.mark.parametrize("keep", [1, 3, 50])
def test_a_folder_below_the_root(root: Path, name: str, keep: int) -> None:
    found = {"path": f"{root}/{name}", "keep_releases": keep}
    assert validate_driver_settings("directory", found) == found


@pytest.mark.parametrize("keep", [0, 51, -1, True, False, 3.0, "3", None, [3], float("nan")])
def test_keep_releases_is_a_bounded_whole_number(root: Path, keep: object) -> None:
    assert message({"path": f"{root}/a", "keep_releases": keep}).startswith("keep_releases: ")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "//a",
        "a/",
        "a//b",
        ".",
        "a/.",
        "..",
        "../x",
        "a/../b",
        "a/..",
        ".ssh",
        "-rf",
        "a b",
        "a;id",
        "$(id)",
        "`id`",
        "a|b",
        "a\nb",
        "a\x00b",
        "a\\b",
        "~",
        "*",
        "a'b",
        'a"b',
        "é",
        "a&b",
        "a>b",
        "x" * 129,
        "x/" * 600 + "x",
        "�",
    ],
)
def test_a_path_that_needs_quoting_or_leads_elsewhere(root: Path, name: str) -> None:
    assert message({"path": f"{root}/{name}"}).startswith("path: ")


@pytest.mark.parametrize(
    "path",
    [None, 7, True, [], {}, "", "a", "./a", "../a", "~/a", "/", "/etc", "//etc", "\\\\unc\\x", "C:\\x"],
)
def test_a_path_outside_the_root(root: Path, path: object) -> None:
    assert message({"path": path}).startswith("path: ")


def test_a_path_is_required(root: Path) -> None:
    assert message({}).startswith("path: ")
    assert message({"path": str(root)}).startswith("path: ")
    assert message({"path": f"{root}-beside/a"}).startswith("path: ")


def test_a_link_does_not_lead_out(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    (root / "up").symlink_to("..")
    (root / "self").symlink_to(root)
    (root / "loop").symlink_to(root / "loop")
    (root / "real").mkdir()
    (root / "in").symlink_to(root / "real")
    for name in ("out", "out/x", "up/x", "self", "loop/x"):
        assert "symbolic link" in message({"path": f"{root}/{name}"}), name
    assert validate_driver_settings("directory", {"path": f"{root}/in/x"})["path"] == f"{root}/in/x"


def test_the_root_may_be_behind_a_link(settings: Settings, root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path / "alias")
    for base in (tmp_path / "alias", root):
        assert validate_driver_settings("directory", {"path": f"{base}/a"})["path"] == f"{base}/a"


def test_unknown_settings_and_drivers_are_refused_by_name(root: Path) -> None:
    assert "'kubeconfig' is no setting" in message({"path": f"{root}/a", "kubeconfig": "canary"})
    assert "canary" not in message({"path": f"{root}/a", "kubeconfig": "canary"})
    assert "1 is no setting" in message({1: 2})
    for driver in ("ssh", "", None, 7, ["directory"]):
        assert "known are directory" in message({}, driver)
    wrong: list[Any] = [None, [], "x", 7]
    for value in wrong:
        assert "an object" in message(value)


def test_a_schema_knows_its_name() -> None:
    assert [schema.name for schema in DRIVERS.values()] == list(DRIVERS)
    assert DRIVERS["directory"].secret_names == ()


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30), st.one_of(st.text(max_size=9), st.integers(), st.none(), st.floats()))
def test_any_settings_are_accepted_or_a_validation_error(root: Path, name: str, keep: object) -> None:
    for path in (name, f"{root}/{name}", f"{root}/a/{name}"):
        try:
            validate_driver_settings("directory", {"path": path, "keep_releases": keep})
        except ValidationError:
            continue
        assert Path(path).resolve().is_relative_to(root)
