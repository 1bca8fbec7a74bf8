"""Model fields of our own: text that is encrypted at rest."""

from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models


class SecretUnreadable(Exception):
    """A stored secret that none of ENCRYPTION_KEYS opens."""

    def __init__(self) -> None:
        super().__init__(
            "a stored secret cannot be decrypted: put the key it was written with back into ENCRYPTION_KEYS"
        )


def cipher() -> MultiFernet:
    """Encrypts with the newest key (the first of ENCRYPTION_KEYS) and decrypts with any."""
    return MultiFernet([Fernet(key) for key in settings.ENCRYPTION_KEYS])


class Secret:
    """A secret as it lies in the database. Only `reveal` decrypts, and nothing prints it by accident."""

    __slots__ = ("_token",)

    def __init__(self, token: str) -> None:
        self._token = token

    @classmethod
    def of(cls, text: str) -> "Secret":
        """Encrypt `text`; the empty text is stored empty."""
        return cls(cipher().encrypt(text.encode()).decode() if text else "")

    def reveal(self) -> str:
        """The text. Raises SecretUnreadable under a wrong key: ciphertext is never handed on."""
        if not self._token:
            return ""
        try:
            return cipher().decrypt(self._token.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable from None

    @property
    def stored(self) -> str:
        return self._token

    def __bool__(self) -> bool:
        return bool(self._token)

    def __repr__(self) -> str:
        return "Secret(…)" if self._token else "Secret()"

    __str__ = __repr__


class EncryptedTextField(models.TextField):  # type: ignore[type-arg]
    """Text that the database holds as a Fernet token. Reads give a Secret; a plain text assigned is encrypted."""

    def from_db_value(self, value: str | None, *_: Any) -> Secret | None:
        return None if value is None else Secret(value)

    def to_python(self, value: Any) -> Any:
        return Secret.of(value) if isinstance(value, str) else value

    def get_prep_value(self, value: Any) -> str | None:
        if value is None:
            return None
        return value.stored if isinstance(value, Secret) else Secret.of(str(value)).stored

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        """A plain text leaves the instance with the save."""
        value = super().pre_save(model_instance, add)
        if isinstance(value, str):
            value = Secret.of(value)
            setattr(model_instance, self.attname, value)
        return value

    def value_to_string(self, obj: models.Model) -> str:  # noqa: ARG002
        """Serialised dumps carry no secret: a load would take the token for a text. It is to be entered again."""
        return ""
