"""The one place where a request to a store is repeated: full-jitter back-off (tenacity), counted. Any thread.

Only RepositoryUnavailable is worth another attempt; every other error stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Final, TypeVar

import tenacity

from driver.core.errors import RepositoryUnavailable
from driver.store.port import Listed, Listing, Page, Part, Pieces, Store, nothing

T = TypeVar("T")
Left = Callable[[], float]
"""Seconds that somebody still waits for an answer; 0 once nobody does."""
_AT_ONCE: Final = 8
_LOOK_SECONDS: Final = 0.5
_FIRST_SECONDS: Final = 0.1
CAP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to go on: no new attempt of a request after `seconds` of failures; None means for ever."""

    seconds: float | None
    cap_seconds: float = CAP_SECONDS


FOR_EVER: Final = Policy(None)
LASTING: Final = Policy(6 * 3600.0)
"""For what has done hours of work, and would have to begin again."""
PATIENT: Final = Policy(300.0)
BRIEF: Final = Policy(4.0, cap_seconds=1.0)


@dataclass(frozen=True, slots=True)
class Watch:
    """Told of every attempt, and of every attempt that is a repetition of one that failed."""

    request: Callable[[], None]
    retry: Callable[[], None]


class Retrying:
    """An ObjectStore whose calls are repeated as the policy says, but not for longer than there is `left`."""

    def __init__(
        self, store: Store, policy: Policy, watch: Watch | None = None, left: Left | None = None,
        attempts: futures.Executor | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._policy = policy
        self._watch = watch or Watch(nothing, nothing)
        self._left = left
        self._attempts = attempts or futures.ThreadPoolExecutor(_AT_ONCE, "attempt")  # for those within a time
        stop = tenacity.stop_never if policy.seconds is None else tenacity.stop_after_delay(policy.seconds)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RepositoryUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_SECONDS, max=policy.cap_seconds),
            stop=lambda state: stop(state) or (left is not None and left() <= 0),
            sleep=lambda seconds: time.sleep(seconds if left is None else min(seconds, left())),
            before=self._before,
            reraise=True,
        )

    def watched(self, watch: Watch) -> Retrying:
        """The same store, whose attempts `watch` is told of instead."""
        return Retrying(self._store, self._policy, watch, self._left, self._attempts)

    def within(self, left: Left) -> Retrying:
        """The same store for who waits no longer than there is `left`: a request that takes longer is RepositoryUnavailable,
        and may still be done. At most eight such requests are under way at once, others wait for their turn."""
        return Retrying(self._store, self._policy, self._watch, left, self._attempts)

    def _before(self, state: tenacity.RetryCallState) -> None:
        self._watch.request()
        if state.attempt_number > 1:
            self._watch.retry()

    def _do(self, call: Callable[[], T]) -> T:
        left = self._left
        return self._retrying.copy()(call if left is None else lambda: self._in_time(call, left))

    def _in_time(self, call: Callable[[], T], left: Left) -> T:
        if left() > 0:
            try:
                attempt = self._attempts.submit(call)
            except RuntimeError as error:
                raise RepositoryUnavailable(f"{self.where}: not asked: {error}", "this process is being ended") from error
            while (seconds := left()) > 0:
                if futures.wait([attempt], min(seconds, _LOOK_SECONDS)).done:
                    return attempt.result()
            attempt.cancel()
        raise RepositoryUnavailable(
            f"{self.where}: no answer within the time of the call", "check that the endpoint is right and the store is up"
        )

    @property
    def where(self) -> str:
        return self._store.where

    def get(self, key: str, maximum_bytes: int) -> bytes | None:
        return self._do(lambda: self._store.get(key, maximum_bytes))

    def get_range(self, key: str, offset: int, length: int) -> Part | None:
        return self._do(lambda: self._store.get_range(key, offset, length))

    def put(self, key: str, pieces: Pieces) -> None:
        self._do(lambda: self._store.put(key, pieces))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """As `ObjectStore.put_if_absent`; after an attempt whose answer was lost, False may mean our own object."""
        return self._do(lambda: self._store.put_if_absent(key, data))

    def delete(self, key: str) -> None:
        self._do(lambda: self._store.delete(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        self._do(lambda: self._store.delete_many(keys))

    def tidy(self, before: float) -> int:
        return self._do(lambda: self._store.tidy(before))

    def head(self, key: str) -> Listed | None:
        return self._do(lambda: self._store.head(key))

    def list(self, prefix: str, between: Callable[[], None] = nothing) -> Listing:
        """As `ObjectStore.list`; each page is repeated by itself."""
        page = self._page(prefix, None)
        found, now = [*page.objects], page.now  # of the first one: nothing looks older than it is
        while page.next is not None:
            between()
            page = self._page(prefix, page.next)
            found += page.objects
        return Listing(tuple(found), now)

    def _page(self, prefix: str, after: str | None) -> Page:
        return self._do(lambda: self._store.page(prefix, after))

    def close(self) -> None:
        self._store.close()
