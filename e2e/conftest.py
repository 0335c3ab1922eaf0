"""The cluster with the driver installed, once a run; a namespace of its own for every story."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from e2e.cluster import TOOLS, Cluster, Story
from e2e.install import IMAGE, Release
from e2e.kind import Kind
from e2e.machines import Machines, TestBed
from e2e.slow import SlowStore

ROOT = Path(__file__).parents[1]
_LAST = ("test_upgrade", "test_nodes_that_die", "test_uninstall")
"""Stories after which the cluster is not as it was come last; the one that begins without the driver comes first."""
_STORY_SECONDS = 400
"""Without the fixtures: the first story waits for the images, which may take minutes."""
_FIGURES = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        if not _is_story(item):
            return -2
        name = item.path.stem
        return -1 if name == "test_quick_start" else _LAST.index(name) + 1 if name in _LAST else 0

    items.sort(key=place)
    for item in filter(_is_story, items):
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_STORY_SECONDS, func_only=True))
        if "CI" in os.environ:  # a whole cluster on a few cores: what was slow once is told as a rerun
            item.add_marker(pytest.mark.flaky(reruns=1))


def _is_story(item: pytest.Item) -> bool:
    return item.path.is_relative_to(ROOT / "e2e")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Something measured, for the end of the run's output."""
    return pytestconfig.stash.setdefault(_FIGURES, []).append


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """$CLUSTER: kind, or a program with the verbs of `TestBed`. Under CI, stories are skipped where it cannot be started."""
    kind = os.environ.get("CLUSTER", "kind")
    made: Machines = Kind() if kind == "kind" else TestBed(Path(kind).resolve())
    try:
        made.up()
    except subprocess.CalledProcessError as error:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.down()
        if "CI" not in os.environ:
            raise
        pytest.skip(f"this machine cannot start a cluster: {error}: {error.stderr}")
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def images(machines: Machines) -> None:
    """The driver's image of this tree, and the one of the stories' pods."""
    machines.build(IMAGE, ROOT)
    machines.build(TOOLS, ROOT / "e2e/image")


@pytest.fixture(scope="session")
def bucket(machines: Machines) -> str:
    """A bucket of this run's own."""
    name = f"e2e-{int(time.time())}"
    store = machines.store
    boto3.session.Session().client(
        "s3", endpoint_url=store.endpoint, aws_access_key_id=store.access_key, aws_secret_access_key=store.secret_key,
        region_name=store.region,
    ).create_bucket(Bucket=name)  # fmt: skip
    return name


@pytest.fixture(scope="session")
def slow(machines: Machines) -> Iterator[SlowStore]:
    """The way that the repository `slow` takes to the store; as fast as any until a story says otherwise."""
    made = SlowStore(machines.store.endpoint)
    yield made
    made.close()


@pytest.fixture(scope="session")
def release(machines: Machines, images: None, bucket: str, slow: SlowStore) -> Iterator[Release]:
    """The driver, installed."""
    made = Release(Cluster(machines), bucket, slow.endpoint)
    made.prepare()
    made.install()
    yield made
    if made.is_installed():
        made.remove()


@pytest.fixture(scope="session")
def cluster(release: Release) -> Cluster:
    """The cluster with the driver in it."""
    return release.cluster


@pytest.fixture
def story(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Story]:
    """A namespace named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test-")[:40].strip("-")
    made = Story(cluster, f"{name}-{int(time.time()) % 10000}")
    yield made
    made.end()
