"""A repository in memory and those who use it, for tests of garbage collection: others run between any two requests.

Every actor is a thread that waits before each of its requests until the town lets it go on; it can sleep for days, or die
there. The town's dice decide who goes on, so a seed is a history. Time passes only when the town says so.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from driver.core.errors import StillframeError
from driver.store.port import Listed, Listing, Part, Pieces, nothing

HOUR: Final = 3600.0


class Died(BaseException):
    """The actor was killed."""


def _closed() -> threading.Lock:
    """A lock that one thread takes and another one gives back: a third of the time of a semaphore."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Actor:
    """`main` runs in a thread of its own, and sees the store through `View`."""

    def __init__(self, town: Town, name: str, main: Callable[[View], object]) -> None:
        self.town = town
        self.name = name
        self.asleep_until = 0.0
        self.skew = 0.0
        self.is_removing = False
        self.asked: Callable[[], object] | None = None
        self.ended = False
        self.doomed = False
        self.error: StillframeError | None = None
        self.defect: BaseException | None = None
        self._go = _closed()
        self._main = main
        self.guard: Callable[[], None] = lambda: None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.doomed:
                self._main(View(self.town, self))
        except Died:
            pass
        except StillframeError as error:
            self.error = error
        except BaseException as error:  # told by the town
            self.defect = error
        self.ended = True
        self.town.back.release()

    def pause(self) -> None:
        """Before a request: let others go on. Raises Died."""
        self.town.back.release()
        self._go.acquire()
        if self.doomed:
            raise Died
        self.guard()

    def step(self) -> None:
        """Let it do its next request."""
        self.town.running = self
        self._go.release()
        self.town.back.acquire()
        if self.defect is not None:
            raise self.defect

    def die(self) -> None:
        self.doomed = True
        while not self.ended:
            self.step()


class Town:
    """The objects, the store's clock, the actors. `changes` counts what may make an object needed, or take one away;
    `on_made` hears of what `put_if_absent` made."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 1e9
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.back = _closed()
        self.actors: list[Actor] = []
        self.log: list[str] = []
        self.changes = 0
        self.running: Actor | None = None
        self.on_made: Callable[[str, bytes], None] = lambda key, data: None

    def time(self) -> str:
        """What the clock of the running actor's host says; in place of `catalog.now`."""
        skew = self.running.skew if self.running is not None else 0.0
        return datetime.fromtimestamp(self.now + skew, UTC).isoformat()

    def say(self, text: str) -> None:
        self.log.append(f"{(self.now - 1e9) / HOUR:9.3f} h  {text}")

    def enter(self, name: str, main: Callable[[View], object]) -> Actor:
        actor = Actor(self, name, main)
        self.actors.append(actor)
        return actor

    def awake(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.ended and actor.asleep_until <= self.now]

    def step(self, actor: Actor) -> None:
        actor.step()
        if actor.ended:
            self.actors.remove(actor)
            if actor.error is not None:
                self.say(f"{actor.name} failed: {actor.error.message}")

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = (data, self.now)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key in self.objects:
            return False
        self.put(key, data)
        self.changes += 1
        self.on_made(key, data)
        return True

    def close(self) -> None:
        for actor in list(self.actors):
            actor.die()
        self.actors.clear()


class View:
    """The store, as one actor sees it: each request waits for its turn, and takes a second or so."""

    where = "the town's store"

    def __init__(self, town: Town, actor: Actor) -> None:
        self._town = town
        self.actor = actor

    def _request(self, what: str = "", put: Callable[[], object] | None = None) -> None:
        """With `put`, one that may be done after its actor's death: it was sent before."""
        self.actor.asked = put
        self.actor.pause()
        self.actor.asked = None
        self._town.now += self._town.dice.choice((0.0, 0.0, 1.0, 2.0))
        if what:
            self._town.say(f"{self.actor.name}: {what}")

    def get(self, key: str, maximum_bytes: int) -> bytes | None:
        self._request(f"get {key}")
        return self._town.objects[key][0] if key in self._town.objects else None

    def get_range(self, key: str, offset: int, length: int) -> Part | None:
        raise NotImplementedError

    def put(self, key: str, pieces: Pieces) -> None:
        data = b"".join(bytes(piece) for piece in pieces)
        self._request(f"put {key}", lambda: self._town.put(key, data))
        self._town.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._request(f"put if absent {key}", lambda: self._town.put_if_absent(key, data))
        return self._town.put_if_absent(key, data)

    def delete(self, key: str) -> None:
        self._request(f"delete {key}")
        self._town.objects.pop(key, None)
        self._town.changes += 1

    def delete_many(self, keys: Sequence[str]) -> None:
        """In no order; it may die in the middle, but it is one request: it does not take days."""
        self.actor.is_removing = True
        for key in self._town.dice.sample(list(keys), len(keys)):
            self.delete(key)
        self.actor.is_removing = False

    def tidy(self, before: float) -> int:
        return 0

    def head(self, key: str) -> Listed | None:
        self._request(f"head {key}")
        found = self._town.objects.get(key)
        return None if found is None else Listed(key, len(found[0]), found[1])

    def list(self, prefix: str, between: Callable[[], None] = nothing) -> Listing:
        """In pages: what comes and goes meanwhile may be in it, or not."""
        found: list[Listed] = []
        began, last = 0.0, ""
        while True:
            self._request(f"list {prefix} from {last!r}")
            began = began or self._town.now
            keys = sorted(key for key in self._town.objects if key.startswith(prefix) and key > last)
            some = keys[: self._town.dice.randrange(2, 12)]
            found += [Listed(key, len(self._town.objects[key][0]), self._town.objects[key][1]) for key in some]
            if len(some) == len(keys):
                return Listing(tuple(found), began)
            last = some[-1]
            between()

    def close(self) -> None:
        pass
