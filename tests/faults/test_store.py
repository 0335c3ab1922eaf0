"""A store that misbehaves while an engine snapshots and restores: what passes is waited for, the rest is told at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import DataCorrupt, RepositoryUnavailable, StillframeError
from driver.core.settings import Repository
from driver.core.sizes import MIB
from driver.store.port import Options
from driver.store.retry import Policy, Retrying, Watch
from driver.store.s3 import S3Store
from tests.engines import Engine, engine
from tests.oracle import fill, read_device
from tests.servers import S3Server, credentials_file, rclone_server, versitygw_server
from tests.transfer.proxy import ALTER, CUT, DROP, DROP_ANSWER, PASS, RESET, STALL, Action, Proxy
from tests.waiting import wait_until

SIZE = 48 * MIB


@pytest.fixture(scope="module")
def server() -> S3Server:
    return versitygw_server() or rclone_server()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    """An engine that the tests of this file share, and its volume, which is full of random bytes."""
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        yield made


@dataclass(frozen=True)
class Behind:
    """A bucket of its own, which the engine reaches through the proxy; what is made in it is named after it."""

    engine: Engine
    bucket: str

    def create(self, name: str) -> None:
        """Begin a snapshot."""
        self.engine.call("snapshot.create", volume="v", name=f"{name}-{self.bucket}", repository=self.bucket)

    def wait(self, name: str) -> dict[str, Any]:
        """The snapshot's end."""
        return self.engine.wait_snapshot(f"{name}-{self.bucket}", repository=self.bucket)

    def restored(self, name: str) -> bytearray:
        """What is on a volume that is made of the snapshot."""
        volume = f"restored-{self.bucket}"
        content = read_device(self.engine.restore(f"{name}-{self.bucket}", volume, repository=self.bucket), SIZE)
        self.engine.call("volume.detach", name=volume)
        self.engine.call("volume.delete", name=volume)
        return content


@pytest.fixture
def made(server: S3Server, proxy: Proxy, running: Engine) -> Behind:
    bucket, credentials = server.make_bucket(), str(credentials_file(running.state.parent))
    running.repository(bucket, f"s3://{bucket}/p", endpoint=proxy.endpoint, region="us-east-1", credentials=credentials)
    return Behind(running, bucket)


def now_and_then(action: Action, wanted: str, part: str, left: list[int]) -> Callable[[str, str], Action]:
    """That action for the first requests of method `wanted` whose path has `part`; `left` says how many."""

    def decide(method: str, path: str) -> Action:
        if method == wanted and part in path and left[0]:
            left[0] -= 1
            return action
        return PASS

    return decide


@pytest.mark.parametrize(
    ("action", "part"),
    [(500, "/packs/"), (503, "/packs/"), (503, "manifest.json"), (DROP, "/packs/"), (RESET, "/packs/"), (RESET, "/regions/"),
     (DROP_ANSWER, "/packs/"), (DROP_ANSWER, "/regions/"), (DROP_ANSWER, "manifest.json")],
)  # fmt: skip
def test_a_snapshot_outlives_what_passes(made: Behind, proxy: Proxy, action: Action, part: str) -> None:
    content = read_device(made.engine.call("volume.show", name="v")["device"], SIZE)
    left = [3]
    proxy.decide = now_and_then(action, "PUT", part, left)
    made.create("s")
    shown = made.wait("s")
    assert shown["state"] == "committed", shown
    assert left == [0]
    left = [3]
    proxy.decide = now_and_then(CUT, "GET", "/packs/", left)
    assert made.restored("s") == content
    assert left == [0]


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "AccessDenied"), (404, "does not exist"), (507, "XMinioStorageFull"), (501, "HTTP 501")],
)
def test_what_stays_fails_the_snapshot_at_once_and_says_why(made: Behind, proxy: Proxy, status: int, words: str) -> None:
    proxy.decide = lambda method, path: status if method == "PUT" and proxy.count("PUT", "/packs/") > 1 else PASS
    made.create("s")
    shown = made.wait("s")
    assert shown["state"] == "failed"
    assert words in shown["error"]["message"], shown["error"]
    assert shown["error"]["hint"]
    assert shown["session"]["retries"] == 0
    proxy.decide = lambda method, path: PASS
    made.create("again")
    assert made.wait("again")["state"] == "committed"


@pytest.mark.parametrize("part", ["/packs/", "/regions/", "manifest.json"])
def test_altered_bytes_never_become_a_volume(made: Behind, proxy: Proxy, part: str) -> None:
    made.create("s")
    assert made.wait("s")["state"] == "committed"
    proxy.decide = lambda method, path: ALTER if method == "GET" and part in path else PASS
    with pytest.raises(StillframeError) as failed:
        made.restored("s")
    assert failed.type is DataCorrupt
    assert part.strip("/") in str(failed.value), "the object's key is told"
    proxy.decide = lambda method, path: PASS
    assert [volume["name"] for volume in made.engine.call("volume.list")["volumes"]] == ["v"]
    made.restored("s")


def test_a_commit_that_outlives_its_engine_comes_too_late(made: Behind, proxy: Proxy, server: S3Server) -> None:
    """It is held up on its way to the store; the next engine has settled the session meanwhile."""
    if server is not versitygw_server():
        pytest.skip("versitygw is needed: a store that honours conditional PUTs")
    held, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "PUT" and "manifest.json" in path and not held.is_set():
            held.set()
            go_on.wait()

    proxy.hold = hold
    made.create("s")
    assert held.wait(150)
    made.engine.kill()
    made.engine.start()
    made.engine.call("volume.attach", name="v")
    assert made.wait("s")["state"] == "failed"
    go_on.set()

    def done() -> list[int]:
        return [status for method, path, status in proxy.answered if method == "PUT" and "manifest.json" in path]

    wait_until(lambda: len(done()) == 2)
    assert done() == [200, 412], "the fence, then the commit"
    made.create("next")
    assert made.wait("next")["state"] == "committed"


@pytest.mark.parametrize(("action", "times", "patience"), [(DROP, 400, 60.0), (STALL, 1, 1.0)])
def test_an_hour_without_the_store_in_scaled_time(
    server: S3Server, proxy: Proxy, tmp_path: Path, action: Action, times: int, patience: float
) -> None:
    """400 attempts, which take an hour and more at ten seconds each; here the cap is ten milliseconds. And a store that
    falls silent after a request, which is waited for a second instead of a minute."""
    url, credentials = f"s3://{server.make_bucket()}/p", str(credentials_file(tmp_path))
    repository = Repository("r", url, proxy.endpoint, "us-east-1", credentials=credentials)
    retries: list[int] = []
    watch = Watch(lambda: None, lambda: retries.append(1))
    store = Retrying(S3Store(repository, Options(read_seconds=patience)), Policy(None, cap_seconds=0.01), watch)
    proxy.decide = now_and_then(action, "PUT", "/p/", [times])
    store.put("object", [b"content"])
    assert len(retries) == times
    assert store.get("object", 100) == b"content"


def test_a_store_that_is_away_refuses_a_snapshot_before_the_cut(made: Behind, proxy: Proxy) -> None:
    proxy.decide = lambda method, path: DROP
    with pytest.raises(RepositoryUnavailable):
        made.create("s")
    assert made.engine.call("volume.show", name="v")["snapshot_in_progress"] is None
    proxy.decide = lambda method, path: PASS
    made.create("s")
    assert made.wait("s")["state"] == "committed"
