"""Garbage collection of all repositories, now and then, by the replica that acts for all.

A Lease object of its own lasts until the next time, whoever is started meanwhile: for an hour once one has begun, for the
whole interval once it has succeeded, so that one that is cut off is made up for. Collections take turns in the repository
itself: no more is asked of the cluster than that they are not too many.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from driver.controller.clones import left_over
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.repositories import Repositories
from driver.core.errors import StillframeError
from driver.rpc import logs

_LOOK_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 3600
"""After a failure, and after one that was cut off, unless the interval is shorter."""


class Garbage:
    """Collects every `interval_seconds`, at least 60. `name` is the lease's; the times are kept in `<name>-garbage`."""

    def __init__(
        self, repositories: Repositories, kube: Kube, lease: Lease, name: str, identity: str, interval_seconds: int,
        registry: CollectorRegistry,
    ) -> None:  # fmt: skip
        self._repositories = repositories
        self._kube = kube
        self._lease = lease
        self._name = f"{name}-garbage"
        self._identity = identity
        self._interval = interval_seconds
        self._done = Counter(
            "stillframe_garbage_collections", "Garbage collections of this replica", ["repository", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._freed = Counter("stillframe_garbage_freed_bytes", "What they removed", ["repository"], registry=registry)
        self._last = Gauge(
            "stillframe_garbage_collected_timestamp_seconds", "When the last one succeeded, if this replica did it",
            ["repository"], registry=registry,
        )  # fmt: skip

    def start(self) -> None:
        """From a thread, for ever."""
        threading.Thread(target=self._run, name="garbage", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.turn()
            except StillframeError as error:
                logs.log().warning("no garbage collection for now", error=error.message)
            except Exception:  # the outermost loop of a thread
                logs.log().exception("defect")
            threading.Event().wait(_LOOK_SECONDS)

    def turn(self) -> bool:
        """Collect, if it is time: whether it was. Raises KubernetesUnavailable, InvalidArgument (repositories.toml)."""
        names = self._repositories.names()
        if not names or not self._lease.is_mine:
            return False
        last = self._kube.lease(self._name)
        if last is not None and last.renewed is not None:
            age = (datetime.now(UTC) - last.renewed).total_seconds()
            if 0 <= age < min(last.lasts_seconds, self._interval):
                return False
        again = min(AGAIN_SECONDS, self._interval)
        version = self._note(again, last.version if last is not None else None)
        if version is None:
            return False
        outcomes = [self._collect(name) for name in names]
        self._note(self._interval if all(outcomes) else again, version)
        return True

    def _note(self, lasts_seconds: int, version: str | None) -> str | None:
        return self._kube.put_lease(self._name, self._identity, lasts_seconds, version)

    def _collect(self, name: str) -> bool:
        try:
            for snapshot in left_over(self._repositories.list(name), datetime.now(UTC)):
                self._repositories.delete(name, snapshot, only_writer=False)
                logs.log().info("what a clone left behind is deleted", repository=name, snapshot=snapshot)
            done = self._repositories.collect(name, self._identity)
        except StillframeError as error:
            self._done.labels(name, "failed").inc()
            logs.log().warning("garbage collection failed", repository=name, error=error.message, hint=error.hint)
            return False
        self._done.labels(name, "done").inc()
        self._freed.labels(name).inc(done["freed_bytes"])
        self._last.labels(name).set_to_current_time()
        logs.log().info("garbage is collected", repository=name, **done)
        return True
