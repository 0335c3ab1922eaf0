"""Jobs of a few requests, which the supervisor runs in threads of its own: its connections are warm. Any thread.

Short time-outs: a store that does not answer is reported within about ten seconds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from driver.core import settings
from driver.core.settings import Repository
from driver.store.open import honours_conditions, open_store
from driver.store.port import Options, nothing
from driver.store.retry import BRIEF, Left, Retrying, Watch
from driver.transfer import catalog, specs
from driver.transfer.begun import Begun
from driver.transfer.remembered import Remembered

_OPTIONS: Final = Options(connections=8, connect_seconds=3.0, read_seconds=4.0)
_KEPT: Final = 8
Spec = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Open:
    """A repository's open store, and what was read in it."""

    repository: Repository
    store: Retrying
    remembered: Remembered = field(default_factory=Remembered)
    opening: threading.Lock = field(default_factory=threading.Lock)  # held while a new prefix becomes a repository

    def within(self, left: Left) -> Open:
        """The same, for who waits no longer than there is `left`."""
        return replace(self, store=self.store.within(left))

    def honours_conditions(self) -> bool:
        return honours_conditions(self.repository, self.store)


class Stores:
    """Open stores, by their settings; a changed repositories.toml or credentials file makes a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _open; nothing is asked of a store with it held
        self._open: dict[tuple[Repository, int], Open] = {}

    def get(self, repository: Repository) -> Open:
        """Raises InvalidArgument, AccessDenied."""
        key = (repository, _changed(repository.credentials))
        with self._lock:
            found = self._open.get(key)
            if found is None:
                found = Open(repository, open_store(repository, BRIEF, _OPTIONS))
                while len(self._open) >= _KEPT:
                    self._open.pop(next(iter(self._open))).store.close()
                self._open[key] = found
            return found


def _changed(path: str | None) -> int:
    try:
        return os.stat(path).st_mtime_ns if path else 0
    except OSError:
        return 0


def begin(of: Open, spec: Spec, result: Result, begun: Begun) -> None:
    """specs.Begin -> {repository_id, conditional_put, parent: {id, created, size_bytes} or None, requests}; with
    AlreadyExists perhaps {manifest}"""
    requests = 0

    def count() -> None:
        nonlocal requests
        requests += 1

    repository, store = of.repository, of.store.watched(Watch(count, nothing))
    session = specs.parse(spec, specs.Begin)
    repository_id = catalog.open_repository(store, of.opening, was_used=bool(session.parents))
    conditions = honours_conditions(repository, store)
    beginning = catalog.Beginning(session.snapshot, session.volume, session.lineage, session.node, session.group)
    found = catalog.begin(store, beginning, session.parents, result, repository.name, conditions=conditions)
    begun.note(session.snapshot.id, repository, repository_id, found)
    parent = None
    if found is not None:
        parent = {"id": found.snapshot.id, "created": found.created, "size_bytes": found.size_bytes}
    result.update(repository_id=repository_id, conditional_put=conditions, parent=parent, requests=requests)


def check(of: Open, spec: Spec, result: Result) -> None:
    """-> {conditional_put}: whether it honours them. Fails if it cannot be written to. A new prefix becomes a repository."""
    catalog.open_repository(of.store, of.opening)
    result["conditional_put"] = of.honours_conditions()


def list_snapshots(of: Open, spec: Spec, result: Result) -> None:
    """-> {snapshots: [summary]}"""
    result["snapshots"] = catalog.list_snapshots(of.store, of.repository.name, of.remembered)


def show(of: Open, spec: Spec, result: Result) -> None:
    """specs.OfSnapshot -> summary"""
    result.update(catalog.show(of.store, of.repository.name, specs.parse(spec, specs.OfSnapshot).snapshot, of.remembered))


def delete(of: Open, spec: Spec, result: Result) -> None:
    """specs.Delete -> {}"""
    wanted = specs.parse(spec, specs.Delete)
    conditions = of.honours_conditions()
    catalog.delete(of.store, wanted.snapshot, conditions=conditions, only_writer=wanted.only_writer)


def withdraw(of: Open, spec: Spec, result: Result) -> None:
    """specs.Withdraw -> {}: undo `begin` for a session that came to nothing."""
    wanted = specs.parse(spec, specs.Withdraw)
    catalog.withdraw(of.store, wanted.snapshot, wanted.volume, wanted.node, wanted.since)


def settle(of: Open, spec: Spec, result: Result) -> None:
    """specs.Settle -> summary of what the snapshot is for good; without conditional PUTs, of what it is now."""
    wanted = specs.parse(spec, specs.Settle)
    catalog.check_same(of.store, wanted.repository_id)
    if of.honours_conditions():
        catalog.settle(of.store, wanted.snapshot, wanted.volume, wanted.node, wanted.reason)
    else:
        catalog.withdraw(of.store, wanted.snapshot, wanted.volume, wanted.node)
    result.update(catalog.show(of.store, of.repository.name, wanted.snapshot, of.remembered))


JOBS: Final[dict[str, Callable[[Open, Spec, Result], None]]] = {
    "withdraw": withdraw,
    "settle": settle,
    "check": check,
    "list": list_snapshots,
    "show": show,
    "delete": delete,
}


KINDS: Final = frozenset({"begin", *JOBS})


def run(stores: Stores, begun: Begun, state: Path, kind: str, spec: Spec, result: Result) -> None:
    """Fill in the result of a small job. Raises every StillframeError."""
    wanted = specs.parse(spec, specs.OfRepository)
    repository = settings.repository(state, wanted.repository)
    of = stores.get(repository)
    if kind == "begin":
        begin(of, spec, result, begun)
    else:
        JOBS[kind](_in_time(of, wanted.seconds), spec, result)


def _in_time(of: Open, seconds: float | None) -> Open:
    if seconds is None:
        return of
    until = time.monotonic() + seconds
    return of.within(lambda: max(0.0, until - time.monotonic()))
