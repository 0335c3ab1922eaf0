"""A folder as an object store: file:///folder, on a local disk or a network file system. Any thread, any process.

An object is a file below the folder, written beside its place, synced, renamed (or linked: link(2) fails if the name is
taken, which is what makes `put_if_absent` exclusive), and the folders that lead to it synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from driver.core.errors import (
    AccessDenied,
    OutOfSpace,
    RepositoryMissing,
    RepositoryUnavailable,
    StillframeError,
    Unsupported,
)
from driver.store import layout
from driver.store.port import Body, Listed, Options, Page, Part, Pieces

_BESIDE: Final = ".new-"
_RECORD_BYTES_MAX: Final = 64 * 1024
_NO_ACCESS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DirectoryStore:
    """Objects below `folder`, an absolute path of an existing folder."""

    def __init__(self, folder: str, options: Options) -> None:
        self._folder = os.path.normpath(folder)
        self._pace = options.pace
        self._known: tuple[tuple[int, int], bytes | None] | None = None  # the folder's inode, its repository's record

    @property
    def where(self) -> str:
        return f"folder {self._folder}"

    def get(self, key: str, maximum_bytes: int) -> bytes | None:
        with self._translated("reading", key):
            fd = self._open(key)
            if fd is None:
                return None
            with open(fd, "rb", buffering=0) as file:
                return _read(file.fileno(), 0, maximum_bytes + 1)

    def get_range(self, key: str, offset: int, length: int) -> Part | None:
        with self._translated("reading", key):
            fd = self._open(key)
            if fd is None:
                return None
            try:
                return Part(_read(fd, offset, length), os.fstat(fd).st_size)
            finally:
                os.close(fd)

    def put(self, key: str, pieces: Pieces) -> None:
        with self._translated("writing", key), self._written(key, pieces) as (beside, path):
            os.rename(beside, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._translated("writing", key), self._written(key, [data]) as (beside, path):
            try:
                os.link(beside, path)
            except FileExistsError:
                return False
            return True

    def delete(self, key: str) -> None:
        with self._translated("deleting", key):
            path = self._path(key)
            try:
                os.unlink(path)
            except FileNotFoundError:
                self._check_folder()
                return
            _sync(os.path.dirname(path))

    def delete_many(self, keys: Sequence[str]) -> None:
        folders: set[str] = set()
        for key in keys:
            with self._translated("deleting", key), contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(key))
                folders.add(os.path.dirname(self._path(key)))
        with self._translated(f"deleting {len(keys)} objects"):
            self._check_folder()
            for folder in folders:
                _sync(folder)

    def tidy(self, before: float) -> int:
        with self._translated("removing what is half-written"):
            self._check_folder()
            removed = _remove_half_written(self._folder, os.listdir(self._folder), before)
            for prefix in (layout.LINEAGES, layout.SNAPSHOTS):
                for parent, folders, names in os.walk(self._path(prefix), topdown=False):
                    removed += _remove_half_written(parent, names, before)
                    _remove_if_empty(parent, folders, before)
            return removed

    def head(self, key: str) -> Listed | None:
        with self._translated("looking at", key):
            try:
                status = os.stat(self._path(key))
            except FileNotFoundError:
                self._check_folder()
                return None
            return Listed(key, status.st_size, status.st_mtime)

    def page(self, prefix: str, after: str | None) -> Page:
        """All at once."""
        with self._translated("listing", prefix):
            self._check_folder()
            now = self._now()
            return Page(tuple(sorted(self._walk(self._path(prefix)), key=lambda item: item.key)), now)

    def close(self) -> None:
        """Nothing is held open."""

    def _now(self) -> float:
        """The clock that stamps the files: a file server's may differ from this host's."""
        path = os.path.join(self._folder, f"{_BESIDE}{uuid.uuid4()}")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in _NO_ACCESS or error.errno in _NO_SPACE:
                return time.time()  # who may only read removes nothing
            raise
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            os.unlink(path)

    def _walk(self, folder: str) -> Iterator[Listed]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        for parent, _, names in os.walk(folder, onerror=refuse):
            for name in names:
                path = os.path.join(parent, name)
                if not name.startswith(_BESIDE):
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(path)
                        yield Listed(os.path.relpath(path, self._folder), status.st_size, status.st_mtime)

    def _path(self, key: str) -> str:
        return os.path.join(self._folder, key)

    def _open(self, key: str) -> int | None:
        try:
            return os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._check_folder()
            return None

    def _check_folder(self) -> None:
        """Raises RepositoryMissing; RepositoryUnavailable if the folder is another one than before, and not the same
        repository: where a file server was mounted, an empty folder is left."""
        try:
            found = os.stat(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None or not stat.S_ISDIR(found.st_mode):
            message = f"the repository's {self.where} does not exist"
            raise RepositoryMissing(message, "create it, or mount what should be there")
        inode = (found.st_dev, found.st_ino)
        before, record = self._known or (None, None)
        if inode == before and record is not None:
            return
        now = self._record()
        if record is not None and now != record:
            raise RepositoryUnavailable(
                f"the repository's {self.where} is not the one that was there before",
                "mount that again; another repository needs another name, or an engine that is started again",
            )
        self._known = (inode, now)

    def _record(self) -> bytes | None:
        """What makes the folder a repository."""
        try:
            fd = os.open(self._path(layout.REPOSITORY), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return _read(fd, 0, _RECORD_BYTES_MAX)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _written(self, key: str, pieces: Pieces) -> Iterator[tuple[str, str]]:
        """A synced file with the pieces, beside its final path; removed at the end unless it was renamed."""
        self._check_folder()
        path = self._path(key)
        folder = os.path.dirname(path)
        self._make_folders(folder)
        beside = os.path.join(folder, f"{_BESIDE}{uuid.uuid4()}")
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, Body(pieces, self._pace))
                os.fsync(fd)
            finally:
                os.close(fd)
            yield beside, path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
        _sync(folder)
        self._check_folder()

    def _make_folders(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder) and folder != self._folder:
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            _sync(os.path.dirname(path))

    @contextlib.contextmanager
    def _translated(self, doing: str, key: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{doing} {key!r}" if key else doing
            at = f" ({error.filename})" if error.filename not in (None, self._path(key)) else ""
            raise self._domain_error(f"{what} in {self.where}: {error.strerror}{at}", error) from error

    @staticmethod
    def _domain_error(message: str, error: OSError) -> StillframeError:
        if error.errno in _NO_ACCESS:
            return AccessDenied(message, "give the user that runs Stillframe access to the folder")
        if error.errno in _NO_SPACE:
            return OutOfSpace(message, "make room on the file system that holds it: even a deletion writes a small file")
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EOPNOTSUPP):
            return Unsupported(message, "the folder holds other things than a repository, or cannot hold one")
        return RepositoryUnavailable(message, "look at the file system that holds the repository")


def _read(fd: int, offset: int, length: int) -> bytes:
    length = max(0, min(length, os.fstat(fd).st_size - offset))
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _write(fd: int, body: Body) -> None:
    while piece := body.read():
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]


def _remove_half_written(folder: str, names: Sequence[str], before: float) -> int:
    """Remove those of a folder's files that were never whole and that nobody has touched since; how many those were."""
    removed = 0
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
            if name.startswith(_BESIDE) and os.stat(path).st_mtime < before:
                os.unlink(path)
                removed += 1
    return removed


def _remove_if_empty(folder: str, folders: Sequence[str], before: float) -> None:
    """Remove a folder in which nothing is, nor was for a while: who writes there makes it again."""
    with contextlib.suppress(OSError):  # not empty: rmdir(2) has several errors for that
        if folders or os.stat(folder).st_mtime < before:  # one that held only such was made long ago
            os.rmdir(folder)


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        error.filename = folder  # by a descriptor it is not known
        raise
    finally:
        os.close(fd)
