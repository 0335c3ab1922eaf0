"""A deterministic scheduler: real threads of which one runs at a time, switched at any line of the code under test.

Which actor runs next, for how many lines, and who dies where is drawn from one `random.Random`, so that a seed is a run.
An actor that dies raises `Died` in the middle of a line's successor; its locks are dropped, as the kernel would.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

TRACED = ("/driver/volume/",)


class Died(BaseException):
    """The actor was killed."""


class Stopped(BaseException):
    """The run is over."""


class Actor:
    def __init__(self, scheduler: Scheduler, name: str, main: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.name = name
        self.main = main
        self.turn = threading.Semaphore(0)
        self.waits_for: Callable[[], bool] | None = None
        self.ended = False
        self.doomed = False
        self.error: BaseException | None = None
        self.died = False
        self.budget = 0
        self.locks: list[tuple[int, int]] = []
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        self.turn.acquire()
        sys.settrace(self._trace)
        try:
            self.main()
        except Died:
            self.died = True
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            self.scheduler.drop_locks(self)
            self.ended = True
            self.scheduler.back.release()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in TRACED):
            return None
        if event == "line":
            self.budget -= 1
            if self.budget <= 0:
                self.pause()
        return self._trace

    def pause(self) -> None:
        """Let somebody else run; comes back with a new budget of lines."""
        self.scheduler.back.release()
        self.turn.acquire()
        if self.scheduler.over:
            raise Stopped
        if self.doomed:
            self.doomed = False
            raise Died


class Scheduler:
    """Owns the actors and the record locks, which exclude each other between actors."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.back = threading.Semaphore(0)
        self.actors: list[Actor] = []
        self.over = False
        self.steps = 0

    def add(self, name: str, main: Callable[[], None]) -> Actor:
        actor = Actor(self, name, main)
        self.actors.append(actor)
        actor.thread.start()
        return actor

    def current(self) -> Actor:
        me = threading.current_thread()
        return next(actor for actor in self.actors if actor.thread is me)

    def run(self, on_end: Callable[[Actor], None] = lambda actor: None, kill: float = 0.0, limit: int = 200_000) -> None:
        """Until every actor has ended. `kill` is the chance that a switch is a death (of an actor that `mortal` names)."""
        while self.actors:
            ready = [a for a in self.actors if a.waits_for is None or a.waits_for()]
            assert ready, f"deadlock: {[a.name for a in self.actors]}"
            actor = self.random.choice(ready)
            actor.waits_for = None
            actor.budget = self.random.choice((1, 1, 2, 5, 20, 100))
            actor.doomed = actor.name.startswith("mortal") and self.random.random() < kill
            actor.turn.release()
            self.back.acquire()
            self.steps += 1
            assert self.steps < limit, "the run does not end"
            if actor.ended:
                self.actors.remove(actor)
                if actor.error is not None:
                    raise actor.error
                on_end(actor)

    def stop(self) -> None:
        """End the threads that are left."""
        self.over = True
        for actor in self.actors:
            actor.turn.release()
        for actor in self.actors:
            actor.thread.join(150)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Block the calling actor until the condition holds."""
        actor = self.current()
        actor.waits_for = condition
        actor.pause()

    def holder(self, start: int, length: int, other_than: Actor) -> Actor | None:
        for actor in self.actors:
            if actor is not other_than:
                for first, count in actor.locks:
                    if first < start + length and start < first + count:
                        return actor
        return None

    def drop_locks(self, actor: Actor) -> None:
        actor.locks.clear()


class ScheduledLocks:
    """`driver.host.locks.RecordLocks` for actors."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def acquire(self, start: int, length: int = 1) -> None:
        actor = self._scheduler.current()
        while self._scheduler.holder(start, length, actor):
            self._scheduler.wait_until(lambda: not self._scheduler.holder(start, length, actor))
        actor.locks.append((start, length))

    def try_acquire(self, start: int, length: int = 1) -> bool:
        actor = self._scheduler.current()
        if self._scheduler.holder(start, length, actor):
            return False
        actor.locks.append((start, length))
        return True

    def release(self, start: int, length: int = 1) -> None:
        actor = self._scheduler.current()
        actor.locks.remove((start, length))
