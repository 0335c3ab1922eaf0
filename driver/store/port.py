"""What an object store must do: the one interface that the layers above know. Standard library only.

Keys are relative to the repository's prefix. A `Store` does what it is asked once; `driver.store.retry` makes an
`ObjectStore` of it, which repeats that. Any thread.

Errors, from every method: RepositoryMissing (the bucket or folder itself is not there), AccessDenied, RepositoryUnavailable
(may pass: worth another attempt), Unsupported (the store refuses what it is asked for), OutOfSpace, InvalidArgument
(the repository's settings are wrong). An object that does not exist is no error here: the caller knows what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

DELETE_MAX: Final = 1000
"""Keys of one DeleteObjects request (S3 API reference)."""
Pieces = Sequence[memoryview | bytes]
"""The bytes of one object, in order. They must not change before the call returns."""


def nothing() -> None:
    """For who has nothing to do then."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of an object, and the size of the whole object."""

    data: bytes
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing; `modified` is the store's own time in seconds since 1970."""

    key: str
    size_bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects below a prefix, and the store's time when it began to answer."""

    objects: tuple[Listed, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing, as one request brings it; `next` is what to ask for the part after it with, None for the last."""

    objects: tuple[Listed, ...]
    now: float
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How to reach a store. `pace` is called before each run of at most 256 KiB of a body and may sleep."""

    connections: int = 4
    connect_seconds: float = 5.0
    read_seconds: float = 60.0
    pace: Callable[[int], None] | None = None


class _Objects(Protocol):
    """What a store and its repeated requests have in common."""

    @property
    def where(self) -> str:
        """The repository's place in words, for messages."""

    def get(self, key: str, maximum_bytes: int) -> bytes | None:
        """A whole object; None if there is none. At most `maximum_bytes` + 1 of its bytes are read."""

    def get_range(self, key: str, offset: int, length: int) -> Part | None:
        """`length` bytes (at least 1) from `offset` on, fewer if the object ends before; None if there is no object."""

    def put(self, key: str, pieces: Pieces) -> None:
        """Make or replace an object; it is durable and whole when this returns, or not there at all."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Make an object unless one is there: whether it was made by this call. A store may ignore the condition."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove at most `DELETE_MAX` objects, at once where the store can, in no order; those that are gone already do not
        matter."""

    def tidy(self, before: float) -> int:
        """Remove what is no object and never will be: half-written ones that nobody has touched since `before`, by the
        store's clock in seconds since 1970. How many those were."""

    def head(self, key: str) -> Listed | None:
        """Size and time of an object; None if there is none."""

    def close(self) -> None:
        """Drop connections."""


class Store(_Objects, Protocol):
    """A kind of store: each call is one attempt."""

    def page(self, prefix: str, after: str | None) -> Page:
        """Some of the objects whose key begins with `prefix`, which ends in a slash: the first ones, or those after a page
        whose `next` is `after`."""


class ObjectStore(_Objects, Protocol):
    """A repository's objects, as the layers above use them."""

    def list(self, prefix: str, between: Callable[[], None] = nothing) -> Listing:
        """Every object whose key begins with `prefix`, which ends in a slash. `between` is called between its requests."""


class Body:
    """The pieces of an object as the file that an HTTP client reads: no byte is copied, each attempt rewinds it.

    `read` ignores the length it is asked for and returns a whole piece, or at most 256 KiB of one if there is a pace.
    """

    _PACED_BYTES = 256 * 1024

    def __init__(self, pieces: Pieces, pace: Callable[[int], None] | None) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._pace = pace
        self._length = sum(piece.nbytes for piece in self._pieces)
        self._rewind()

    def _rewind(self) -> None:
        self._position = 0
        self._piece = 0
        self._offset = 0

    def __len__(self) -> int:
        return self._length

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """To the start or the end: all that a client needs to learn the length and to send again."""
        if (offset, whence) == (0, 2):
            self._position = self._length
        elif (offset, whence) == (0, 0):
            self._rewind()
        else:
            raise ValueError("a body can only be rewound")
        return self._position

    def read(self, length: int = -1) -> memoryview | bytes:
        if self._piece == len(self._pieces):
            return b""
        piece = self._pieces[self._piece]
        if self._pace is None:
            self._piece += 1
            data = piece
        else:
            data = piece[self._offset : self._offset + self._PACED_BYTES]
            self._offset += len(data)
            if self._offset == len(piece):
                self._piece, self._offset = self._piece + 1, 0
            self._pace(len(data))
        self._position += len(data)
        return data
