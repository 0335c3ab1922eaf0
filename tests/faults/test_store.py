"""A store that misbehaves while an engine snapshots and restores: what passes is waited for, the rest is told at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from driver.core.errors import DataCorrupt, RepositoryUnavailable, StillframeError
from driver.core.settings import Repository
from driver.core.sizes import MIB
from driver.store.port import Options
from driver.store.retry import Policy, Retrying, Watch
from driver.store.s3 import S3Store
from tests.apiserver import wait_until
from tests.engines import Engine, engine, run
from tests.oracle import read_device
from tests.servers import S3Server, credentials_file, rclone_server, versitygw_server
from tests.transfer.proxy import ALTER, CUT, DROP, DROP_ANSWER, PASS, RESET, STALL, Action, Proxy

SIZE = 48 * MIB


@pytest.fixture(scope="module")
def server() -> S3Server:
    return versitygw_server() or rclone_server()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


@pytest.fixture
def made(server: S3Server, proxy: Proxy) -> Iterator[Engine]:
    """An engine whose repository is behind the proxy, and a volume that is full of random bytes."""
    with engine() as running:
        credentials = str(credentials_file(running.state.parent))
        url = f"s3://{server.make_bucket()}/p"
        running.repository("store", url, endpoint=proxy.endpoint, region="us-east-1", credentials=credentials)
        device = running.volume("v", SIZE)
        run("dd", "if=/dev/urandom", f"of={device}", "bs=1M", f"count={SIZE // MIB}", "oflag=direct", "status=none")
        yield running


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
     (DROP_ANSWER, "/packs/"), (DROP_ANSWER, "/regions/"), (DROP_ANSWER, "manifest.json"), (STALL, "/packs/")],
)  # fmt: skip
def test_a_snapshot_outlives_what_passes(made: Engine, proxy: Proxy, action: Action, part: str) -> None:
    content = read_device(made.call("volume.show", name="v")["device"], SIZE)
    left = [1 if action is STALL else 3]
    proxy.decide = now_and_then(action, "PUT", part, left)
    made.call("snapshot.create", volume="v", name="s", repository="store")
    shown = made.wait_snapshot("s", repository="store")
    assert shown["state"] == "committed", shown
    assert left == [0]
    left = [3]
    proxy.decide = now_and_then(CUT, "GET", "/packs/", left)
    assert read_device(made.restore("s", "r", repository="store"), SIZE) == content
    assert left == [0]


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "AccessDenied"), (404, "does not exist"), (507, "XMinioStorageFull"), (501, "HTTP 501")],
)
def test_what_stays_fails_the_snapshot_at_once_and_says_why(made: Engine, proxy: Proxy, status: int, words: str) -> None:
    proxy.decide = lambda method, path: status if method == "PUT" and proxy.count("PUT", "/packs/") > 1 else PASS
    made.call("snapshot.create", volume="v", name="s", repository="store")
    shown = made.wait_snapshot("s", repository="store")
    assert shown["state"] == "failed"
    assert words in shown["error"]["message"], shown["error"]
    assert shown["error"]["hint"]
    assert shown["session"]["retries"] == 0
    proxy.decide = lambda method, path: PASS
    made.call("snapshot.create", volume="v", name="again", repository="store")
    assert made.wait_snapshot("again", repository="store")["state"] == "committed"


@pytest.mark.parametrize("part", ["/packs/", "/regions/", "manifest.json"])
def test_altered_bytes_never_become_a_volume(made: Engine, proxy: Proxy, part: str) -> None:
    made.call("snapshot.create", volume="v", name="s", repository="store")
    assert made.wait_snapshot("s", repository="store")["state"] == "committed"
    proxy.decide = lambda method, path: ALTER if method == "GET" and part in path else PASS
    with pytest.raises(StillframeError) as failed:
        made.restore("s", "r", repository="store")
    assert failed.type is DataCorrupt
    assert part.strip("/") in str(failed.value), "the object's key is told"
    proxy.decide = lambda method, path: PASS
    assert "r" not in [volume["name"] for volume in made.call("volume.list")["volumes"]]
    made.restore("s", "r", repository="store")


def test_a_commit_that_outlives_its_engine_comes_too_late(made: Engine, proxy: Proxy, server: S3Server) -> None:
    """It is held up on its way to the store; the next engine has settled the session meanwhile."""
    if server is not versitygw_server():
        pytest.skip("versitygw is needed: a store that honours conditional PUTs")
    held, go_on = threading.Event(), threading.Event()

    def decide(method: str, path: str) -> Action:
        if method == "PUT" and "manifest.json" in path and not held.is_set():
            held.set()
            go_on.wait()
        return PASS

    proxy.decide = decide
    made.call("snapshot.create", volume="v", name="s", repository="store")
    assert held.wait(60)
    made.kill()
    made.start()
    assert made.wait_snapshot("s", repository="store")["state"] == "failed"
    go_on.set()

    def done() -> list[int]:
        return [status for method, path, status in proxy.answered if method == "PUT" and "manifest.json" in path]

    wait_until(lambda: len(done()) == 2, 20)
    assert done() == [200, 412], "the fence, then the commit"
    made.call("snapshot.create", volume="v", name="next", repository="store")
    assert made.wait_snapshot("next", repository="store")["state"] == "committed"


def test_an_hour_without_the_store_in_scaled_time(server: S3Server, proxy: Proxy) -> None:
    """400 attempts, which take an hour and more at ten seconds each; here the cap is ten milliseconds."""
    credentials = credentials_file(server.root.parent)
    url = f"s3://{server.make_bucket()}/p"
    repository = Repository("r", url, proxy.endpoint, "us-east-1", credentials=str(credentials))
    retries: list[int] = []
    watch = Watch(lambda: None, lambda: retries.append(1))
    store = Retrying(S3Store(repository, Options()), Policy(None, cap_seconds=0.01), watch)
    proxy.decide = now_and_then(DROP, "PUT", "/p/", [400])
    store.put("object", [b"content"])
    assert len(retries) == 400
    assert store.get("object", 100) == b"content"
    credentials.unlink()


def test_a_store_that_is_away_refuses_a_snapshot_before_the_cut(made: Engine, proxy: Proxy) -> None:
    proxy.decide = lambda method, path: DROP
    with pytest.raises(RepositoryUnavailable):
        made.call("snapshot.create", volume="v", name="s", repository="store")
    assert made.call("volume.show", name="v")["snapshot_in_progress"] is None
    proxy.decide = lambda method, path: PASS
    made.call("snapshot.create", volume="v", name="s", repository="store")
    assert made.wait_snapshot("s", repository="store")["state"] == "committed"
