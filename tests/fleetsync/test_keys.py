"""The keys that a bare machine makes for itself."""

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from fleetsync.keys import kept_secret

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["secret_key", "encryption_keys"])
def test_it_is_made_once_and_is_ours_alone(tmp_path: Path, name: str) -> None:
    value = kept_secret(tmp_path / "data", name)
    assert len(value) >= 44
    assert kept_secret(tmp_path / "data", name) == value
    assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / name]


def test_an_encryption_key_is_one_for_fernet(tmp_path: Path) -> None:
    Fernet(kept_secret(tmp_path, "encryption_keys"))


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fleetsync.keys import kept_secret\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.monotonic()))\n"
        "print([kept_secret(Path(sys.argv[1]), f'key-{i}') for i in range(200)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(time.monotonic() + 3)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0] for process in started]
    assert len(set(answers)) == 1
    assert len(answers[0].split(", ")) == 200
