"""Keys that a bare machine makes for itself and keeps in its data folder (DEBUG only)."""

import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet


def kept_secret(folder: Path, name: str) -> str:
    """The secret kept in `folder`/`name`, made on the first call; the file is 0600.

    Several processes start at once, so the file is linked into place whole: the first one wins and all read
    its value.
    """
    path = folder / name
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        value = Fernet.generate_key().decode() if name == "encryption_keys" else secrets.token_urlsafe(50)
        draft = folder / f".{name}.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(value)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
