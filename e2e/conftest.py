"""The cluster with the driver installed, once a run; a namespace of its own for every story."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from e2e import install
from e2e.cluster import TOOLS, Cluster, Story
from e2e.kind import Kind
from e2e.machines import Machines, TestBed

ROOT = Path(__file__).parents[1]
_LAST = ("test_nodes_that_die", "test_uninstall")
"""Stories after which the cluster is not as it was come last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.module.__name__.rpartition(".")[2] if isinstance(item, pytest.Function) else ""
        return _LAST.index(name) + 1 if name in _LAST else 0

    items.sort(key=place)


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """$CLUSTER: kind, or a program with the verbs of `TestBed`."""
    kind = os.environ.get("CLUSTER", "kind")
    made: Machines = Kind() if kind == "kind" else TestBed(Path(kind).resolve())
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def images(machines: Machines) -> None:
    """The driver's image of this tree, and the one of the stories' pods."""
    machines.build(install.IMAGE, ROOT)
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
def cluster(machines: Machines, images: None, bucket: str) -> Iterator[Cluster]:
    """The cluster, with the driver in it."""
    made = Cluster(machines)
    install.install(made, bucket)
    yield made
    install.remove(made)


@pytest.fixture
def story(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Story]:
    """A namespace named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test-")[:40].strip("-")
    made = Story(cluster, f"{name}-{int(time.time()) % 10000}")
    yield made
    made.end()
