"""Where throttled writes wait: a request slot aside each, so that the threads go on to receive reads and flushes.

A parked request is RECEIVED, without a RESULT: if the process dies, its successor does it. When all spare slots are taken,
the thread itself waits.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable

from driver.volume.requests import Worker


class Parking:
    """The spare request slots of one volume process, and the thread that takes up what waits in them.

    `make` makes the worker of a slot ready to receive; a slot costs memory from its first use on. `on_end` hears of what
    ended the thread. Any of the process's threads.
    """

    def __init__(
        self, spares: Iterable[int], make: Callable[[int], Worker], on_end: Callable[[BaseException], None]
    ) -> None:
        self._fresh = list(spares)
        self._make = make
        self._on_end = on_end
        self._free: list[Worker] = []
        self._waiting: list[tuple[float, int, Worker, Callable[[], object]]] = []  # a heap: what is to be done, and when
        self._numbers = itertools.count()
        self._changed = threading.Condition()  # guards all of the above
        self._thread: threading.Thread | None = None

    def instead(self, worker: Worker, seconds: float) -> Worker:
        """The worker to go on with, while the request in the slot of `worker` waits for `seconds`."""
        due = time.monotonic() + seconds
        with self._changed:
            other = self._free.pop() if self._free else self._make(self._fresh.pop()) if self._fresh else None
            if other is not None:
                heapq.heappush(self._waiting, (due, next(self._numbers), worker, worker.resume))
                self._start()
                self._changed.notify()
                return other
        time.sleep(seconds)
        worker.resume()
        return worker

    def take_up(self, worker: Worker) -> None:
        """Do what a dead predecessor left in a spare slot, at once."""
        with self._changed:
            heapq.heappush(self._waiting, (0.0, next(self._numbers), worker, worker.recover))
            self._start()
            self._changed.notify()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="parking", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                worker, act = self._next()
                act()
                with self._changed:
                    self._free.append(worker)
        except BaseException as error:  # the outermost loop of the thread: the process ends with it
            self._on_end(error)

    def _next(self) -> tuple[Worker, Callable[[], object]]:
        """Wait until a request is due."""
        with self._changed:
            while True:
                left = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._waiting)[2:]
                self._changed.wait(left)
