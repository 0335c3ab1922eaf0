"""What the repositories say of snapshots: read first, whatever became of a node. gRPC's threads.

The state folder's repositories.toml is read at each call; every request to a store has short time-outs, and the time that
the call has that it is for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc

from driver.core import settings
from driver.core.errors import FailedPrecondition, NotFound, SnapshotFailed
from driver.rpc.deadlines import time_left
from driver.store.open import honours_conditions, open_store
from driver.store.port import ObjectStore, Options
from driver.store.retry import PATIENT, Left
from driver.transfer import catalog
from driver.transfer.collect import READERS, Ways, collect
from driver.transfer.records import Aborted
from driver.transfer.small import Open, Stores

Summary = dict[str, Any]
_AT_ONCE: Final = 8


class Repositories:
    """Those that <state>/repositories.toml names."""

    def __init__(self, state: Path, stores: Stores | None = None, left: Left | None = None) -> None:
        self._state = state
        self._stores = stores or Stores()
        self._left = left

    def within(self, context: grpc.ServicerContext) -> Repositories:
        """The same, for a call: what takes longer than that has time is RepositoryUnavailable."""
        return Repositories(self._state, self._stores, lambda: time_left(context))

    def named(self, name: str | None) -> str:
        """The repository of that name, or the default one. Raises NotFound."""
        return settings.repository(self._state, name).name

    def names(self) -> list[str]:
        """Of all of them. Raises InvalidArgument for a repositories.toml that cannot be read."""
        return [repository.name for repository in settings.repositories(self._state)]

    def _open(self, name: str) -> Open:
        """Raises FailedPrecondition for one that is not there any more."""
        try:
            repository = settings.repository(self._state, name)
        except NotFound as error:
            raise FailedPrecondition(error.message, error.hint) from None
        of = self._stores.get(repository)
        return of if self._left is None else of.within(self._left)

    def show(self, name: str, snapshot: str) -> Summary | None:
        """A snapshot, by its id; None if the repository knows of none. Raises what the store answers, and FailedPrecondition
        if its bucket or folder does not exist: that says nothing of the snapshot."""
        of = self._open(name)
        try:
            return catalog.show(of.store, name, snapshot, of.remembered)
        except NotFound:
            _check_place(of.store)
            return None

    def all(self) -> list[Summary]:
        """The snapshots of all repositories, but deleted ones. Raises what a store answers."""
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            return [item for found in pool.map(self.list, self.names()) for item in found]

    def list(self, name: str) -> list[Summary]:
        """The snapshots of a repository, but deleted ones. Of those that are committed only new ones are read."""
        of = self._open(name)
        with _at_its_place():
            return catalog.list_snapshots(of.store, name, of.remembered)

    def fence(self, name: str, snapshot: str, reason: str) -> Summary:
        """End a snapshot that nobody makes any more; what it is now: aborted, or complete after all.

        Raises FailedPrecondition where the store cannot do that safely.
        """
        of = self._open(name)
        if not of.honours_conditions():
            raise FailedPrecondition(
                f"snapshot {snapshot} cannot be ended in repository {name!r}, which ignores conditional PUTs: {reason}",
                "bring the node back, or forget it",
            )
        if isinstance(catalog.fence(of.store, snapshot, reason), Aborted):
            raise SnapshotFailed(reason, "take a new snapshot, of a volume on a node that is there")
        return catalog.show(of.store, name, snapshot, of.remembered)

    def delete(self, name: str, snapshot: str, *, only_writer: bool) -> None:
        """Delete a snapshot; one in the making is ended by that. Nothing happens to one that is gone. Raises Unsupported."""
        of = self._open(name)
        try:
            catalog.delete(of.store, snapshot, conditions=of.honours_conditions(), only_writer=only_writer)
        except NotFound:
            _check_place(of.store)

    def collect(self, name: str, node: str) -> Summary:
        """Remove what nothing in a repository needs; see `driver.transfer.collect`. Takes as long as it takes."""
        repository = self._open(name).repository
        store = open_store(repository, PATIENT, Options(connections=READERS))
        try:
            return collect(
                store, conditions=honours_conditions(repository, store), dry_run=False, ways=Ways(node=node)
            )  # fmt: skip
        finally:
            store.close()


def _check_place(store: ObjectStore) -> None:
    with _at_its_place():
        catalog.check_repository(store)


@contextlib.contextmanager
def _at_its_place() -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise FailedPrecondition(error.message, error.hint or "a folder must be mounted here too") from None
