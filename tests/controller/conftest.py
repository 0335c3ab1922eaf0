"""The cluster of those tests that look at it from beside its controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clusters import Cluster, cluster
from tests.servers import versitygw

__all__ = ["versitygw"]
SLOW = ("--upload-rate", str(2 << 20))


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    """A node that uploads slowly; the controller beside it has another lease, so that it tells nobody anything."""
    with cluster() as made:
        if not made.api.has_snapshots():
            pytest.skip("the definitions of VolumeSnapshots are not at hand: set STILLFRAME_TESTBED")
        made.controller("--lease", "another")
        made.node("node-a", *SLOW)
        yield made
