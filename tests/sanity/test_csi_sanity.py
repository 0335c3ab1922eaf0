"""csi-sanity against the node plugin, its engine and a real S3 server; and through a controller plugin.

What it skips stands in docs/conformance.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.clusters import cluster
from tests.engines import engine
from tests.plugins import Plugin, plugin
from tests.servers import S3Server, credentials_file, find_program, versitygw

__all__ = ["versitygw"]
CONFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


@pytest.fixture
def standalone(versitygw: S3Server) -> Iterator[Plugin]:
    with engine() as made:
        repositories = made.state / "repositories.toml"
        repositories.write_text(repositories.read_text().replace("repositories.local", "repositories.folder"))
        keys = credentials_file(made.state.parent)
        made.repository("s3", f"s3://{versitygw.make_bucket()}/sanity", endpoint=versitygw.endpoint, region="us-east-1",
                        credentials=str(keys))  # fmt: skip
        repositories.write_text(repositories.read_text() + "default = true\n")
        with plugin(made) as running:
            yield running


def listed(access: str) -> dict[str, str]:
    """The cases that docs/conformance.md says are skipped, and why."""
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|$", CONFORMANCE.read_text(), re.MULTILINE)
    assert all(reason for _, reason in rows)
    return dict(rows)


@pytest.mark.parametrize("access", ["mount", "block"])
def test_csi_sanity(standalone: Plugin, access: str) -> None:
    check(standalone, access, "-csi.endpoint", standalone.endpoint)


def test_csi_sanity_through_the_controller() -> None:
    with cluster() as made:
        controller = made.controller()
        node = made.node("node-a")
        check(node, "mount", "-csi.endpoint", node.endpoint, "-csi.controllerendpoint", controller.endpoint)


def check(standalone: Plugin, access: str, *endpoints: str) -> None:
    """Run it against the plugin's node, and compare what it skips with what is written down."""
    program = find_program("csi-sanity")
    if program is None:
        pytest.skip("csi-sanity is not there: go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0")
    folder = standalone.folder / "sanity"
    folder.mkdir()
    report = folder / "junit.xml"
    done = subprocess.run(
        [
            program, *endpoints, "-csi.mountdir", str(folder / "mount"),
            "-csi.stagingdir", str(folder / "stage"), "-csi.testvolumeaccesstype", access,
            "-csi.testvolumesize", str(64 << 20), "-csi.testvolumeexpandsize", str(96 << 20),
            "-csi.junitfile", str(report), "--ginkgo.no-color",
        ],
        capture_output=True, text=True, timeout=1600, check=False,
    )  # fmt: skip
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = {str(case.get("name")) for case in cases if case.find("skipped") is not None}
    passed = [case for case in cases if case.find("skipped") is None and case.find("failure") is None]
    print(f"\ncsi-sanity ({access}): {len(passed)} passed, {len(skipped)} skipped")
    assert done.returncode == 0, done.stdout[-8000:] + standalone.log.read_text()[-4000:]
    assert f"{len(passed)} cases pass in\neach" in CONFORMANCE.read_text()
    assert skipped == set(listed(access)), "docs/conformance.md lists other cases than were skipped"
