"""Subjects in a worker's memory, the least recently used ones dropped; a deleted one goes within a beat."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Lock

from promptnet.inference.subject.subject import Subject


class SubjectCache:
    """The latest subjects.

    Args:
        load: (user, id) -> the subject; called where it is not here.
        size: how many are kept.
    """

    def __init__(self, load: Callable[[str, str], Subject], size: int = 256) -> None:
        self._load, self._size, self._lock = load, size, Lock()
        self._kept: OrderedDict[tuple[str, str], Subject] = OrderedDict()

    def get(self, user: str, name: str) -> Subject:
        """The subject; the same object whoever asks, so that its layers are stacked once."""
        with self._lock:
            if (user, name) in self._kept:
                self._kept.move_to_end((user, name))
                return self._kept[user, name]
        subject = self._load(user, name)
        with self._lock:
            kept = self._kept.setdefault((user, name), subject)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return kept

    def keep_only(self, names: Iterable[str]) -> None:
        """Drop those that are not among these ids any more."""
        known = set(names)
        with self._lock:
            for key in [key for key in self._kept if key[1] not in known]:
                del self._kept[key]

    def names(self) -> list[str]:
        with self._lock:
            return [name for _, name in self._kept]

    def __len__(self) -> int:
        return len(self._kept)
