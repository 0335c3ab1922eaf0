"""docs/csi.md as it is written: its commands, one after another, against an engine and a node plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from driver.host.filesystems import _may_resize_online
from tests.engines import engine
from tests.plugins import plugin

PAGE = Path(__file__).resolve().parents[2] / "docs" / "csi.md"
PRELUDE = """
set -e
id_of() { sed -n 's/.*"'$1'": "\\([^"]*\\)".*/\\1/p' last | head -n 1; }
stillframe() {
    test "$1" = csi
    call=$2 request=${3:-"{}"}
    while true; do
        if ! "$PYTHON" -m driver.cli.main csi "$call" "$request" --endpoint "$ENDPOINT" > last 2> error; then
            cat error
            test "$call" = NodeExpandVolume && test "$MAY_RESIZE" = no && grep -q CAP_SYS_RESOURCE error && return 0
            return 1
        fi
        test "$call" = CreateSnapshot && test -n "$SNAPSHOT" && ! grep -q ready_to_use last || break
        sleep 0.1
    done
    if test "$call" = CreateSnapshot; then SNAPSHOT=$(id_of snapshot_id); fi
    cat last
}
"""


def script(folder: Path, port: str) -> str:
    """The page's indented lines, without the answers; ids are those that were answered."""
    page = PAGE.read_text().partition("## Parameters")[0]
    lines = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    kept = [line for line in lines if not line.startswith(("{", "stillframe engine run", "stillframe node"))]
    text = "\n".join(kept)
    for name in ("VOLUME=host:3f0c…", "COPY=host:51c0…"):
        assert name in text
        text = text.replace(name, name.partition("=")[0] + "=$(id_of volume_id)")
    text = text.replace("main:9d2e…", "'$SNAPSHOT'").replace("localhost:9808", f"localhost:{port}")
    return PRELUDE + text.replace("/tmp/stage", f"{folder}/staging/walk").replace("/tmp/pod", f"{folder}/pods/walk")


def test_the_page_can_be_walked() -> None:
    with engine() as made, plugin(made, "--http", "0") as one:
        port = one.log.read_text().partition('"http": ')[2].partition(",")[0]
        walked = subprocess.run(
            ["bash", "-c", script(one.folder, port)], capture_output=True, text=True, timeout=900, check=False,
            cwd=one.folder, env={
                **os.environ, "PYTHON": sys.executable, "ENDPOINT": one.endpoint, "PYTHONPATH": str(PAGE.parents[1]),
                "MAY_RESIZE": "yes" if _may_resize_online() else "no",
            },
        )  # fmt: skip
        assert walked.returncode == 0, walked.stdout + walked.stderr
        assert 'method="DeleteSnapshot"' in walked.stdout
        assert one.engine.call("volume.list")["volumes"] == []
