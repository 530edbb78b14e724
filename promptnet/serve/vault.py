"""Encryption at rest: a data key for each user, wrapped by the service's master key; deletion destroys the data key.

AES-256-GCM (NIST SP 800-38D) with a random nonce for each file. A file's name is bound into it, so that no file can
stand for another. The key folder is kept apart from backups: without it they are noise, and a data key that was
destroyed takes all copies of its user's files with it.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from promptnet.io.atomic import sync_folder, write_whole

_NONCE_BYTES = 12


class VaultError(ValueError):
    """What cannot be decrypted: its key is gone, or the file is not what was written."""


class Vault:
    """The keys of one service.

    Args:
        folder: of the keys; made if missing, readable by its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in (folder, folder / "users"):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._master = _kept(folder / "master.key", lambda: secrets.token_bytes(32))

    def encrypt(self, user: str, name: str, data: bytes) -> bytes:
        """Encrypt with the user's data key, which is made if there is none."""
        return _sealed(self._data_key(user, make=True), name, data)

    def decrypt(self, user: str, name: str, data: bytes) -> bytes:
        """Decrypt what `encrypt` returned.

        Raises:
            VaultError: the user's key was destroyed, or the data were altered or are another file's.
        """
        return _opened(self._data_key(user, make=False), name, data)

    def destroy(self, user: str) -> None:
        """Destroy the user's data key: overwritten, removed, and the removal flushed to the disk."""
        path = self._path(user)
        with suppress(FileNotFoundError):
            with path.open("r+b") as file:
                file.write(secrets.token_bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        sync_folder(path.parent)

    def has(self, user: str) -> bool:
        return self._path(user).is_file()

    def users(self) -> list[str]:
        """Those who have a data key."""
        return sorted(path.stem for path in (self.folder / "users").glob("*.key"))

    def mark(self, *parts: str | bytes) -> str:
        """A keyed hash (HMAC-SHA256, RFC 2104): says whether two things are the same, and without the key nothing."""
        data = [part.encode() if isinstance(part, str) else part for part in parts]
        lengths = b"".join(len(part).to_bytes(8, "big") + part for part in data)
        return hmac.new(self._master, b"mark" + lengths, hashlib.sha256).hexdigest()

    def _path(self, user: str) -> Path:
        return self.folder / "users" / f"{user}.key"

    def _data_key(self, user: str, *, make: bool) -> bytes:
        path = self._path(user)
        name = f"key of {user}"
        if not make and not path.exists():
            raise VaultError("the user's data key does not exist: it was destroyed, or the key folder is another's")
        wrapped = _kept(path, lambda: _sealed(self._master, name, secrets.token_bytes(32)))
        return _opened(self._master, name, wrapped)


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """The file's content; made first if there is none. Of several processes that make one, one wins."""
    if not path.exists():
        own = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        write_whole(own, make())
        try:
            with suppress(FileExistsError):
                os.link(own, path)
        finally:
            own.unlink()
        sync_folder(path.parent)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise VaultError("the user's data key was destroyed meanwhile") from error


def _sealed(key: bytes, name: str, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, name.encode())


def _opened(key: bytes, name: str, data: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], name.encode())
    except (InvalidTag, ValueError) as error:
        raise VaultError("a file cannot be decrypted: it was altered, or belongs to another key folder") from error
