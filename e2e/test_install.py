"""The driver is installed with Helm."""

from __future__ import annotations

from e2e.cluster import CLASS, SYSTEM, Story, until


def test_every_node_says_how_much_it_has_free(story: Story) -> None:
    def told() -> dict[str, str]:
        return {
            capacity["nodeTopology"]["matchLabels"]["topology.stillframe.io/node"]: capacity["capacity"]
            for capacity in story.cluster.every("CSIStorageCapacity", SYSTEM)
            if capacity["storageClassName"] == CLASS and "capacity" in capacity
        }  # fmt: skip

    nodes = set(story.cluster.nodes())
    until(lambda: nodes <= set(told()), 60, lambda: f"free space is known of {told()}")
    assert all(free not in ("", "0") for free in told().values())
