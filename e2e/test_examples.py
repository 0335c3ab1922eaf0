"""The commands of README's quick start, after its `helm install`."""

from __future__ import annotations

from datetime import datetime

from e2e.cluster import Story
from e2e.conftest import ROOT


def commands() -> list[str]:
    """The README's lines that make objects of docs/examples, in their order."""
    lines = (ROOT / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    kubectl apply -f docs/examples/")]


def time_of(line: str) -> datetime:
    """What `date` prints."""
    return datetime.strptime(line.strip().replace(" UTC", ""), "%a %b %d %H:%M:%S %Y")


def test_a_volume_a_snapshot_and_a_restore_on_another_node(story: Story) -> None:
    volume, snapshot, restore = commands()
    folder = str(ROOT / "docs/examples")

    def apply(command: str) -> None:
        words = command.split("#")[0].replace("docs/examples", folder).split()
        story.cluster.kubectl(*words[1:], "--namespace", story.namespace)

    apply(volume)
    node = story.running("writer")
    story.run("writer", "until [ -s /data/log ]; do sleep 0.1; done; sync")
    apply(snapshot)
    apply(restore)
    story.complete("monday")
    assert story.running("reader", 180) != node
    assert time_of(story.wait_for_output("reader")) < time_of(story.run("writer", "tail -n 1 /data/log"))
