"""`stillframe doctor` on this host: what it finds, what it leaves, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver import __version__
from driver.cli.doctor import HAS_PROBLEMS
from driver.core.exitcodes import EXIT_CODES, INTERRUPTED
from tests.engines import Engine, engine
from tests.faults.test_start_and_stop import backing_of


def doctor(state: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the checks by name."""
    command = [sys.executable, "-m", "driver.cli.main", "--state", str(state), "--output", "json", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert not done.stderr, done.stderr
    shown = json.loads(done.stdout)
    assert sum(shown[grade] for grade in ("ok", "warning", "problem")) == len(shown["checks"])
    return done.returncode, {check["check"]: check for check in shown["checks"]}


@pytest.fixture(scope="module")
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


def test_a_host_that_runs_an_engine_has_what_it_needs(one: Engine) -> None:
    devices = set(os.listdir("/dev"))
    code, found = doctor(one.state)
    assert code == 0, found
    for name in ("/dev/fuse", "loop device with direct I/O", "direct I/O in the state folder", "MADV_POPULATE_WRITE",
                 "memfd", "open file description locks", "membarrier", "CAP_SYS_ADMIN", "engine", "repository local",
                 "repository local: conditional PUT", "repository local: clock", "mkfs.xfs"):  # fmt: skip
        assert found[name]["grade"] == "ok", found[name]
    assert "FUSE 7." in found["/dev/fuse"]["found"]
    assert found["engine"]["found"] == f"runs, version {__version__}"
    assert not [name for name in os.listdir(one.state) if name.startswith(".doctor")]
    assert not {name for name in set(os.listdir("/dev")) - devices if "doctor" in name}
    assert "stillframe-doctor" not in Path("/proc/self/mountinfo").read_text()
    assert not [path for path in Path("/sys/block").glob("loop*/loop") if ".doctor-" in backing_of(path)]


def test_what_is_amiss_is_said_with_what_to_do_and_by_the_exit_code(one: Engine, tmp_path: Path) -> None:
    code, found = doctor(tmp_path / "none", "--only", "host", "--only", "running")
    assert code == HAS_PROBLEMS
    assert found["state folder"]["grade"] == "problem" and "mkdir -p -m 700" in found["state folder"]["fix"]
    assert found["engine"]["grade"] == "warning"
    keys = tmp_path / "keys"
    keys.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    (tmp_path / "repositories.toml").write_text(
        f'[repositories.absent]\nurl = "s3://bucket"\nendpoint = "http://127.0.0.1:9"\nregion = "r"\n'
        f'credentials = "{keys}"\n[repositories.folderless]\nurl = "file:///nonexistent/folder"\n'
        f'[repositories.fresh]\nurl = "file://{tmp_path}"\n[repositories.keyless]\nurl = "s3://bucket"\n'
        f'credentials = "{tmp_path}/none"\n'
    )
    code, found = doctor(tmp_path, "--only", "repositories")
    assert code == HAS_PROBLEMS
    assert {name: check["grade"] for name, check in found.items()} == {
        "repository absent": "problem", "repository folderless": "problem", "repository keyless": "problem",
        "repository fresh": "ok", "repository fresh: conditional PUT": "ok", "repository fresh: clock": "ok",
    }  # fmt: skip
    assert all(check["fix"] for check in found.values() if check["grade"] == "problem")
    (tmp_path / "repositories.toml").write_text("nonsense")
    assert doctor(tmp_path, "--only", "repositories")[1]["repositories"]["grade"] == "problem"
    assert HAS_PROBLEMS not in (*EXIT_CODES.values(), INTERRUPTED)


def test_people_get_a_line_a_check(one: Engine) -> None:
    command = [sys.executable, "-m", "driver.cli.main", "--state", str(one.state), "doctor", "--only", "running"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    lines = done.stdout.splitlines()
    assert lines[0] == f"ok       engine: runs, version {__version__}"
    assert lines[-1].endswith(" ok, 0 to look at, 0 to mend")
