"""The command line against a real engine: what is printed, what bad input gets, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import NotFound, RepositoryMissing, StillframeError
from driver.core.exitcodes import EXIT_CODES, exit_code
from driver.core.sizes import MIB
from driver.transfer.catalog import now
from driver.transfer.records import Aborted, encode
from tests.engines import Engine, engine, run

Ran = tuple[int, str, str]


def stillframe(state: Path, *arguments: str) -> Ran:
    """Exit code, standard output and standard error of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "driver.cli.main", "--state", str(state), *arguments], capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def one() -> Iterator[Engine]:
    with engine() as made:
        keys = made.state / "keys"
        keys.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        made.repository("absent", "s3://bucket", endpoint="http://127.0.0.1:9", region="us-east-1", credentials=str(keys))
        made.repository("folderless", "file:///nonexistent/folder")
        path = made.state / "repositories.toml"
        path.write_text(path.read_text().replace("[repositories.local]", "[repositories.local]\ndefault = true"))
        yield made


def test_a_volume_from_its_creation_to_its_deletion(one: Engine) -> None:
    assert stillframe(one.state, "volume", "create", "v", "--size", "16Mi")[0] == 0
    code, said, _ = stillframe(one.state, "volume", "attach", "v")
    assert (code, said.strip()) == (0, f"{one.state}/dev/v")
    assert "v\t16.0 MiB\t16.0 MiB\tthick\tattached" in stillframe(one.state, "volume", "list")[1]
    assert stillframe(one.state, "volume", "grow", "v", "--size", "32Mi")[0] == 0
    shown = json.loads(stillframe(one.state, "--output", "json", "volume", "show", "v")[1])
    assert (shown["size_bytes"], shown["attached"]) == (32 * MIB, True)
    code, said, _ = stillframe(one.state, "snapshot", "create", "v", "--name", "s")
    assert code == 0 and said.startswith("committed s (local:")
    code, _, said = stillframe(one.state, "snapshot", "create", "v", "--name", "s")
    assert code == 4 and "no other one was taken" in said
    code, _, said = stillframe(one.state, "volume", "create", "v", "--size", "32Mi")
    assert code == 4 and "volume 'v' exists" in said
    assert "s\tv\tcommitted" in stillframe(one.state, "snapshot", "list")[1]
    assert "is whole" in stillframe(one.state, "snapshot", "verify", "s")[1]
    assert stillframe(one.state, "snapshot", "restore", "s", "w", "--thin")[0] == 0
    assert "made from:" in stillframe(one.state, "volume", "show", "w")[1]
    assert "pre-images:" in stillframe(one.state, "snapshot", "show", "s")[1]
    for noun, verb, name in (("snapshot", "delete", "s"), ("volume", "detach", "v"), ("volume", "delete", "v"),
                             ("volume", "delete", "w")):  # fmt: skip
        assert stillframe(one.state, noun, verb, name)[0] == 0, (noun, verb, name)
    assert json.loads(stillframe(one.state, "--output", "json", "volume", "list")[1]) == {"volumes": []}


def test_a_deleted_snapshot_is_not_found_and_one_ended_by_others_is_shown(one: Engine) -> None:
    assert stillframe(one.state, "volume", "create", "d", "--size", "1Mi")[0] == 0
    one.call("volume.attach", name="d")
    assert stillframe(one.state, "snapshot", "create", "d", "--name", "gone")[0] == 0
    assert stillframe(one.state, "snapshot", "delete", "gone")[0] == 0
    for command in (("verify", "gone"), ("restore", "gone", "e")):
        code, _, error = stillframe(one.state, "snapshot", *command)
        assert (code, "was deleted" in error) == (3, True), error
    ended = one.state.parent / "repository" / "snapshots" / str(uuid.uuid4())
    ended.mkdir()
    mark = Aborted(snapshot=ended.name, reason="its node was forgotten", aborted=now())
    (ended / "manifest.json").write_bytes(encode(mark))
    code, said, error = stillframe(one.state, "snapshot", "show", ended.name)
    assert code == 0 and "was ended before it was complete: its node was forgotten" in said, error
    for verb in ("detach", "delete"):
        assert stillframe(one.state, "volume", verb, "d")[0] == 0


BAD = {
    "an unknown volume": (("volume", "attach", "nothing"), 3, "there is no volume 'nothing'"),
    "an unknown snapshot": (("snapshot", "verify", "nothing"), 3, "no snapshot"),
    "a size of 0": (("volume", "create", "x", "--size", "0"), 2, "too small"),
    "a size that is none": (("volume", "create", "x", "--size", "ten"), 2, "not a size"),
    "a size beyond the disk": (("volume", "create", "x", "--size", "15Ti"), 6, "free"),
    "a size beyond the largest": (("volume", "create", "x", "--size", "17Ti"), 2, "too large"),
    "a name with a slash": (("volume", "create", "a/b", "--size", "1Mi"), 2, "cannot name a volume"),
    "an unknown repository": (("snapshot", "list", "--repository", "nowhere"), 3, "no repository 'nowhere'"),
    "a repository that does not answer": (("snapshot", "list", "--repository", "absent"), 7, "127.0.0.1:9"),
    "a folder that is missing": (("snapshot", "list", "--repository", "folderless"), 3, "/nonexistent/folder"),
    "an unknown command": (("volume", "paint"), 2, "paint"),
    "an unknown option": (("volume", "list", "--wide"), 2, "--wide"),
    "a missing argument": (("volume", "show"), 2, "NAME"),
    "too little memory": (("engine", "run", "--session-memory", "1Mi"), 2, "32Mi"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_gets_one_line_and_a_code(one: Engine, what: str) -> None:
    arguments, expected, words = BAD[what]
    code, said, error = stillframe(one.state, *arguments)
    assert (code, said) == (expected, ""), error
    lines = error.strip().split("\n")
    assert lines[0].startswith("error: ") and words in error, error
    assert len(lines) <= 2 and (len(lines) == 1 or lines[1].startswith("hint: ")), error


def test_errors_are_json_for_scripts(one: Engine) -> None:
    code, said, error = stillframe(one.state, "--output", "json", "volume", "show", "nothing")
    assert (code, said) == (3, "")
    assert json.loads(error)["error"]["kind"] == "NotFound"


def test_without_an_engine_it_says_how_to_start_one(tmp_path: Path) -> None:
    code, _, error = stillframe(tmp_path, "volume", "list")
    assert code == 10 and "engine run" in error


def test_a_state_folder_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"format": 2, "engine_id": "x"}))
    code, _, error = stillframe(state, "engine", "run")
    assert code == 12 and "another version" in error
    assert not os.path.ismount(state / "dev")


@pytest.mark.parametrize("place", ["state", "state/volumes"])
def test_a_state_folder_that_cannot_be_one_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    code, _, error = stillframe(tmp_path / "state", "engine", "run")
    assert code == 2 and str(tmp_path / place) in error and "--state" in error, error


@pytest.mark.parametrize(("option", "expected", "words"), [("ro", 14, "read-only"), ("nr_inodes=1", 6, "make room")])
def test_a_state_folder_on_a_disk_that_takes_nothing_is_no_defect(
    tmp_path: Path, option: str, expected: int, words: str
) -> None:
    run("mount", "-t", "tmpfs", "-o", option, "nothing", str(tmp_path))
    try:
        code, _, error = stillframe(tmp_path / "state", "engine", "run")
    finally:
        run("umount", str(tmp_path))
    assert code == expected and str(tmp_path) in error and words in error, error


def test_only_root_may_run_an_engine(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    script = "import os; from driver.cli.main import main; os.setuid(65534); main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--state", str(tmp_path / "state"), "engine", "run"], capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 11 and done.stderr.startswith("error: the engine must run as root"), done.stderr


def test_every_error_has_a_code_of_its_own() -> None:
    assert {kind for kind in StillframeError.kinds.values() if StillframeError in kind.__bases__} == set(EXIT_CODES)
    assert exit_code(RepositoryMissing("")) == exit_code(NotFound("")) == 3
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


def test_the_engine_stops_when_it_is_asked(tmp_path: Path) -> None:
    with engine() as made:
        made.volume("v", MIB)
        assert stillframe(made.state, "engine", "stop")[0] == 0
        assert made.process is not None
        assert made.process.wait(150) == 0
        made.process = None
        assert not os.path.ismount(made.state / "dev")
