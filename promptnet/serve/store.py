"""What users own, as encrypted files: users/USER/KIND/ID, each whole or not there.

subjects   a person, as the file of `Subject.save`
thumbnails a subject's reference image as the encoder sees it
images     drawn images
edits      edit cards that users brought
requests   what a job is asked: prompt, settings and, until they are encoded, reference images
results    what a job says when it ends: seeds, or an error's words
previews   the image of a running job as it stands
"""

import shutil
from contextlib import suppress
from pathlib import Path

from promptnet.io.atomic import write_whole
from promptnet.serve.vault import Vault, VaultError

KINDS = ("subjects", "thumbnails", "images", "edits", "requests", "results", "previews")


class Missing(LookupError):
    """A file of a user's that is not there, or whose key is gone."""


class Store:
    """The files of one service.

    Args:
        data: folder of the service.
        vault: its keys.
    """

    def __init__(self, data: Path, vault: Vault) -> None:
        self.folder, self.vault = data / "users", vault
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, user: str, kind: str, name: str, content: bytes) -> int:
        """Write a file and return its size on the disk; an old one is replaced whole.

        Raises:
            OSError: the disk is full, or cannot be written to.
        """
        path = self._path(user, kind, name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = self.vault.encrypt(user, _bound(user, kind, name), content)
        write_whole(path, data)
        return len(data)

    def get(self, user: str, kind: str, name: str) -> bytes:
        """Read a file.

        Raises:
            Missing: it is not there, or its user's key was destroyed.
            VaultError: it was altered.
        """
        try:
            data = self._path(user, kind, name).read_bytes()
        except FileNotFoundError as error:
            raise Missing(f"no {kind} {name}") from error
        if not self.vault.has(user):
            raise Missing(f"the key of {kind} {name} was destroyed")
        return self.vault.decrypt(user, _bound(user, kind, name), data)

    def has(self, user: str, kind: str, name: str) -> bool:
        return self._path(user, kind, name).is_file()

    def remove(self, user: str, kind: str, *names: str) -> None:
        """Remove files; those that are not there are no error."""
        for name in names:
            with suppress(FileNotFoundError):
                self._path(user, kind, name).unlink()

    def remove_user(self, user: str) -> None:
        """Remove everything of a user's and destroy the key, the key first."""
        self.vault.destroy(user)
        shutil.rmtree(self.folder / user, ignore_errors=True)

    def names(self, user: str, kind: str) -> list[str]:
        """Names of a user's files of one kind."""
        folder = self.folder / user / kind
        return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []

    def users(self) -> list[str]:
        """Those who have files."""
        return sorted(path.name for path in self.folder.iterdir())

    def size(self, user: str) -> int:
        """Bytes that a user's files take."""
        paths = [path for kind in KINDS for path in (self.folder / user / kind).glob("*")]
        total = 0
        for path in paths:
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _path(self, user: str, kind: str, name: str) -> Path:
        assert kind in KINDS
        assert all(part.replace("_", "").isalnum() for part in (user, name)), "names are made here, not by users"
        return self.folder / user / kind / name


def _bound(user: str, kind: str, name: str) -> str:
    return f"{user}/{kind}/{name}"


__all__ = ["KINDS", "Missing", "Store", "VaultError"]
