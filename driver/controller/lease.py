"""Which replica acts where one must: the one that has the Lease object. Jobs look at `is_mine`.

Nobody's clock is compared with another's: a replica takes the lease of one whose renewals it has not seen for as long as the
lease lasts, by its own clock. Whoever cannot renew stops acting well before that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from driver.controller.kube import Kube
from driver.controller.seen import LeaseSeen
from driver.core.errors import KubernetesUnavailable
from driver.rpc import logs

LASTS_SECONDS: Final = 45
"""After the last renewal that another replica saw, it takes the lease."""
RENEW_SECONDS: Final = 15.0
ACT_SECONDS: Final = 30.0
"""After the beginning of the last renewal that succeeded, its holder acts no more."""


def may_take(found: LeaseSeen | None, identity: str, unchanged_seconds: float) -> bool:
    """Whether a replica may write its name, or its renewal, into the lease. Pure."""
    if found is None or found.holder in ("", identity):
        return True
    return unchanged_seconds >= found.lasts_seconds


class Lease:
    """The lease `name`, for the replica `identity`, which no other replica has."""

    def __init__(self, kube: Kube, name: str, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._name = name
        self._identity = identity
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{name}", daemon=True)
        self._until = float("-inf")
        self._seen: LeaseSeen | None = None
        self._seen_since = clock()

    @property
    def is_mine(self) -> bool:
        """Whether this replica acts now. Any thread; ask again before each thing that only one may do."""
        return self._clock() < self._until

    def start(self) -> None:
        """Try once (10 s at most), then take it and keep it from a thread."""
        self._try()
        self._thread.start()

    def stop(self) -> None:
        """Give it up, so that another replica need not wait. After `start`."""
        self._stopping.set()
        self._thread.join()
        was_mine, self._until = self.is_mine, float("-inf")
        if was_mine and self._seen is not None:
            try:
                self._kube.put_lease(self._name, "", LASTS_SECONDS, self._seen.version)
            except KubernetesUnavailable as error:
                logs.log().info("the lease was not given up", lease=self._name, error=error.message)

    def renew(self) -> None:
        """Take or renew it, if it can be had. For the thread of `start`, or for who has not started one.

        Raises KubernetesUnavailable; `is_mine` then holds for as long as the last renewal allows.
        """
        begun = self._clock()
        found = self._kube.lease(self._name)
        if found != self._seen:
            self._seen, self._seen_since = found, begun
        if may_take(found, self._identity, begun - self._seen_since):
            version = self._kube.put_lease(self._name, self._identity, LASTS_SECONDS, found.version if found else None)
            if version is not None:
                self._seen, self._seen_since = LeaseSeen(self._identity, LASTS_SECONDS, version), begun
                self._until = begun + ACT_SECONDS
                return
        self._until = float("-inf")

    def _run(self) -> None:
        while not self._stopping.wait(RENEW_SECONDS):
            self._try()

    def _try(self) -> None:
        was_mine = self.is_mine
        try:
            self.renew()
        except KubernetesUnavailable as error:
            logs.log().warning("the lease is not known", lease=self._name, error=error.message)
        except Exception:  # the outermost loop of a thread
            logs.log().exception("defect")
        if self.is_mine is not was_mine:
            logs.log().info("acts for all replicas" if self.is_mine else "another replica acts", lease=self._name)
