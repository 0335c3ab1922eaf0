"""README's quick start, word for word, in a cluster without the driver."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from e2e.cluster import SYSTEM, Cluster, Story
from e2e.conftest import ROOT
from e2e.install import Release
from e2e.machines import Machines, run
from e2e.slow import SlowStore


def commands() -> list[str]:
    """The commands of README's "In a cluster", in their order."""
    section = (ROOT / "README.md").read_text().partition("\n## In a cluster\n")[2].partition("\n## ")[0]
    lines = [line.removeprefix("    ") for line in section.splitlines() if line.startswith("    ")]
    return "\n".join(lines).replace("\\\n", "").splitlines()


def time_of(line: str) -> datetime:
    """What `date` prints."""
    return datetime.strptime(line.strip().replace(" UTC", ""), "%a %b %d %H:%M:%S %Y")


@pytest.fixture
def bare(machines: Machines, images: None, bucket: str, slow: SlowStore) -> Iterator[Story]:
    """A namespace in a cluster without the driver. A driver that the story installs goes with it."""
    cluster = Cluster(machines)
    release = Release(cluster, bucket, slow.endpoint)

    def remove() -> None:
        if release.is_installed():
            release.remove()
        cluster.delete("Namespace", SYSTEM)
        cluster.wait_gone("Namespace", SYSTEM)

    remove()
    story = Story(cluster, f"quick-start-{int(time.time()) % 10000}")
    yield story
    story.end()
    remove()


@pytest.mark.timeout(900, func_only=True)
def test_a_volume_a_snapshot_and_a_restore_on_another_node(
    bare: Story, machines: Machines, bucket: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    store, own = machines.store, tmp_path / "kubeconfig"
    own.write_text(machines.kubeconfig.read_text())
    environment = {
        **machines.programs, "KUBECONFIG": str(own), "BUCKET": bucket, "S3_ENDPOINT": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key,
    }  # fmt: skip

    def type_in(command: str) -> None:
        run("sh", "-ec", f"cd {shlex.quote(str(ROOT))}\n{command}", environment=environment)

    type_in(f"kubectl config set-context --current --namespace={bare.namespace}")
    install, volume, snapshot, restore = commands()
    began = time.monotonic()
    type_in(install)
    type_in(volume)
    bare.bound("data")
    figure(f"helm install to the first bound claim: {time.monotonic() - began:.0f} s")
    node = bare.running("writer")
    bare.run("writer", "until [ -s /data/log ]; do sleep 0.1; done; sync")
    type_in(snapshot)
    type_in(restore)
    bare.complete("monday")
    assert bare.running("reader", 180) != node
    assert time_of(bare.wait_for_output("reader")) < time_of(bare.run("writer", "tail -n 1 /data/log"))
