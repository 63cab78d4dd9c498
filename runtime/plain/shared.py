"""A resource of several owners."""

import threading
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


Resource = TypeVar("Resource", bound=Closable)


class Shared(Generic[Resource]):
    """A resource that is closed when the last of its owners closes this object; it begins with one owner."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self._owners, self._lock = 1, threading.Lock()

    def joined(self) -> "Shared[Resource]":
        """The same object with one more owner."""
        with self._lock:
            self._owners += 1
        return self

    def close(self) -> None:
        """Let go; each owner does so once."""
        with self._lock:
            self._owners -= 1
            last = self._owners == 0
        if last:
            self.resource.close()
