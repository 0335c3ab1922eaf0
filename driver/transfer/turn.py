"""Garbage collections of a repository take turns: two at once could remove the records of a name that is in use again.

One shows itself by an object below `snapshots/`, written anew every few minutes, and gives way if a listing that is made
next, before any other, shows another one. So of two, the later one knows; one that died is forgotten after an hour by the
store's clock; one that was held up for half of that stops by itself. A listing of all snapshots that has its own object in
it is also one that can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from driver.core.errors import DataCorrupt, FailedPrecondition
from driver.core.ids import new_id
from driver.host.clock import boottime
from driver.store import layout
from driver.store.port import Listing, ObjectStore
from driver.transfer import catalog, records

FORGOTTEN_SECONDS: Final = 3600.0
HELD_UP_SECONDS: Final = FORGOTTEN_SECONDS / 2
_RENEWED_SECONDS: Final = 300.0


class Turn:
    """One collection's. `clock` counts seconds. One thread."""

    def __init__(self, store: ObjectStore, node: str, clock: Callable[[], float] = boottime) -> None:
        self._store = store
        self._clock = clock
        self._record = records.Collection(id=new_id(), node=node, begun=catalog.now())
        self._key = layout.collection(self._record.id)
        self._renewed = 0.0
        self._dead: list[str] = []

    def begin(self) -> None:
        """Show that there is a collection, and see that there is no other; before anything else is listed. Raises
        FailedPrecondition, DataCorrupt. In any case `end` is called."""
        self._renewed = self._clock()
        self._store.put(self._key, [records.encode(self._record)])
        listing = self._store.list(layout.COLLECTIONS)
        self.check(listing)
        ages = {item.key: listing.now - item.modified for item in listing.objects if item.key != self._key}
        self._dead = [key for key, age in ages.items() if age > FORGOTTEN_SECONDS]
        alive = sorted((age, key) for key, age in ages.items() if age <= FORGOTTEN_SECONDS)
        if alive:
            age, key = alive[0]
            raise FailedPrecondition(
                f"another garbage collection of {self._store.where} runs: {key} was written {max(0, round(age))} s ago",
                f"wait for its end; one that died is forgotten after {FORGOTTEN_SECONDS / 60:.0f} minutes",
            )

    def check(self, listing: Listing) -> None:
        """Look at a listing of all snapshots. Raises DataCorrupt if it lacks what was written before it."""
        if all(item.key != self._key for item in listing.objects):
            raise DataCorrupt(
                f"{self._key} was written just now and is not in a listing of {self._store.where}; nothing was removed",
                "this store's listings cannot be relied on, now or ever",
            )

    def go_on(self) -> None:
        """Before everything that removes, and now and then. Raises FailedPrecondition if the turn may be over."""
        now = self._clock()
        if now - self._renewed > HELD_UP_SECONDS:
            raise FailedPrecondition(
                f"the garbage collection was held up for {(now - self._renewed) / 60:.0f} minutes, and stops",
                "run it again: it goes on with what is left",
            )
        if now - self._renewed > _RENEWED_SECONDS:
            self._store.put(self._key, [records.encode(self._record)])
            self._renewed = now

    def end(self) -> None:
        """Take back what `begin` wrote, and what collections that died have left."""
        self._store.delete_many([self._key, *self._dead])
