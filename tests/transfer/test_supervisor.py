"""The supervisor's socket, and what wrong calls and wrong settings get."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from driver.core import messages
from driver.core.errors import (
    AccessDenied,
    AlreadyExists,
    Busy,
    InvalidArgument,
    NotFound,
    RepositoryUnavailable,
    StillframeError,
    Unsupported,
)
from driver.core.ids import new_id
from driver.engine.clients import TransferClient
from tests.servers import S3Server, credentials_file
from tests.transfer.rig import Rig
from tests.transfer.volumes import make_volume


def test_the_socket_is_for_its_owner_only(rig: Rig) -> None:
    path = rig.state / "run" / "transfer.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_second_supervisor_is_refused(rig: Rig) -> None:
    command = [sys.executable, "-m", "driver.transfer.supervisor", "--state", str(rig.state)]
    other = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert other.returncode == 1
    assert "another transfer supervisor" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    assert rig.call("list") == {"jobs": {}}


def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / ("x" * 120)):
        command = [sys.executable, "-m", "driver.transfer.supervisor", "--state", str(folder)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert found.returncode == 1
        assert "cannot listen" in found.stderr
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "message",
    [
        {"call": "nonsense"},
        {},
        {"call": "start"},
        {"call": "start", "job": "j", "kind": "nonsense", "spec": {}},
        {"call": "start", "job": "j", "kind": "send", "spec": {}},
        {"call": "start", "job": "j", "kind": "list", "spec": 5},
        {"call": "start", "job": "j", "kind": "list", "spec": {"x": "y" * 100_000}},
        {"call": "status"},
    ],
)
def test_wrong_calls(rig: Rig, message: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(rig.state / "run" / "transfer.sock"))
        with pytest.raises(InvalidArgument):
            messages.call(connection, message)
        assert messages.call(connection, {"call": "list"})[0]["result"] == {"jobs": {}}


def test_bytes_that_are_no_message(rig: Rig) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x02[]", b"\0\0\0\x05{"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(rig.state / "run" / "transfer.sock"))
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    assert rig.call("list") == {"jobs": {}}


def test_wrong_specs(rig: Rig) -> None:
    repository = rig.add_folder()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("list", {}),
        ("show", {"repository": repository, "snapshot": "../../etc"}),
        ("delete", {"repository": repository}),
        ("verify", {"repository": repository, "snapshot": 7}),
        ("begin", {"repository": repository, "snapshot": {"id": "x", "name": "y"}}),
    ]
    for kind, spec in wrong:
        with pytest.raises(InvalidArgument):
            rig.run(kind, spec)


def test_what_is_not_there(rig: Rig) -> None:
    repository = rig.add_folder()
    assert rig.run("list", {"repository": repository}) == {"snapshots": []}
    for kind in ("show", "delete", "verify"):
        with pytest.raises(NotFound):
            rig.run(kind, {"repository": repository, "snapshot": new_id()})
    with pytest.raises(NotFound, match="nowhere"):
        rig.run("list", {"repository": "nowhere"})
    with pytest.raises(NotFound):
        rig.call("status", job="nobody", wait_seconds=1)
    with pytest.raises(NotFound):
        rig.call("forget", job="nobody")
    with pytest.raises(AlreadyExists):
        session = rig.session(repository, make_volume(16))
        session.send()
        session.begin()


def begin_failure(rig: Rig, **changes: str) -> StillframeError:
    session = rig.session(rig.add("s3", **changes), make_volume(16))
    try:
        with pytest.raises(StillframeError) as caught:
            session.begin()
        return caught.value
    finally:
        session.close()


def test_a_session_does_not_begin_without_its_repository(rig: Rig, rclone_s3: S3Server) -> None:
    good = {"endpoint": rclone_s3.endpoint, "credentials": str(credentials_file(rig.folder))}
    wrong = str(credentials_file(rig.folder, secret="wrong"))
    url = f"s3://{rclone_s3.make_bucket()}"
    assert isinstance(begin_failure(rig, url="s3://no-such-bucket", **good), NotFound)
    assert isinstance(begin_failure(rig, url=url, endpoint=rclone_s3.endpoint, credentials=wrong), AccessDenied)
    assert isinstance(begin_failure(rig, url=url, endpoint=rclone_s3.endpoint), AccessDenied)
    nobody = {**good, "url": url, "endpoint": "http://127.0.0.1:1"}
    assert isinstance(begin_failure(rig, **nobody), RepositoryUnavailable)
    (rig.state / "repositories.toml").write_text("[[[")
    with pytest.raises(InvalidArgument, match=r"repositories\.toml"):
        rig.run("list", {"repository": "s3"})


def test_a_store_that_accepts_and_never_answers(rig: Rig) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = begin_failure(rig, url="s3://b", endpoint=endpoint, credentials=str(credentials_file(rig.folder)))
    assert isinstance(error, RepositoryUnavailable)


def test_a_repository_of_a_newer_format_is_refused(rig: Rig) -> None:
    repository = rig.add_folder()
    rig.run("check", {"repository": repository})
    path = rig.folder / "repository-folder" / "stillframe.json"
    body = path.read_bytes().replace(b'"format":1', b'"format":2')
    body = body[: body.index(b',"sha256"')]
    from tests.unit.test_format_records import seal

    path.write_bytes(seal(body))
    for kind in ("check", "list"):
        with pytest.raises(Unsupported, match="format 2"):
            rig.run(kind, {"repository": repository})


def test_a_check_tells_whether_conditional_puts_work(rig: Rig, rclone_s3: S3Server) -> None:
    assert rig.run("check", {"repository": rig.add_folder()}) == {"conditional_put": True}
    assert rig.run("check", {"repository": rig.add_s3(rclone_s3)}) == {"conditional_put": False}


def test_a_session_that_came_to_nothing_leaves_nothing(rig: Rig) -> None:
    repository = rig.add_folder()
    session = rig.session(repository, make_volume(16))
    session.begin()
    withdrawal = {"repository": repository, "snapshot": session.id, "volume": session.volume_id, "node": "node-1"}
    for is_there in (1, 0):
        rig.run("withdraw", {**withdrawal, "volume": new_id()})
        assert len(rig.run("list", {"repository": repository})["snapshots"]) == is_there, "it was another session's"
        rig.run("withdraw", withdrawal)
        assert rig.run("list", {"repository": repository}) == {"snapshots": []}
    session.send()
    rig.run("withdraw", withdrawal)
    assert rig.run("show", {"repository": repository, "snapshot": session.id})["state"] == "committed"
    session.close()


def test_a_session_that_is_not_heard_of_is_told_as_failed(rig: Rig) -> None:
    repository = rig.add_folder()
    session = rig.session(repository, make_volume(16))
    session.begin()
    (pending,) = (rig.folder / "repository-folder" / "snapshots").rglob("pending.json")
    os.utime(pending, (time.time() - 400, time.time() - 400))
    (found,) = rig.run("list", {"repository": repository})["snapshots"]
    assert found["state"] == "failed"
    assert "node-1" in found["error"]["message"]
    session.close()


def test_a_signal_that_another_thread_gets_stops_it_all_the_same(rig: Rig) -> None:
    """The kernel gives a process's signal to any thread if the main one has another pending; tgkill(2) does so for sure."""
    assert rig.supervisor is not None
    pid = rig.supervisor.pid
    other = next(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid)
    assert ctypes.CDLL(None).syscall(234, pid, other, int(signal.SIGTERM)) == 0  # tgkill on x86-64
    assert rig.supervisor.wait(120) == 0
    rig.supervisor = None


def test_who_asks_again_waits_for_what_a_dead_service_had_begun(rig: Rig) -> None:
    """Both are about one snapshot: the later must not overtake the earlier, and is not refused either."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hanging = rig.add("hanging", url="s3://bucket", endpoint=endpoint, credentials=str(credentials_file(rig.folder)))
        rig.call("start", job="catalog-x", kind="list", spec={"repository": hanging})
        with pytest.raises(Busy):
            rig.call("start", job="catalog-x", kind="list", spec={"repository": hanging})
        client = TransferClient(rig.state / "run" / "transfer.sock")
        assert client.ask("catalog-x", "list", {"repository": rig.add_folder()}) == {"snapshots": []}


def test_sessions_that_are_first_in_a_new_prefix_are_in_one_repository(rig: Rig, rclone_s3: S3Server) -> None:
    """All at once, and the store takes the object of each."""
    for turn in range(5):
        repository = rig.add_s3(rclone_s3, f"new-{turn}")
        begun = [
            rig.begin_job("begin", {
                "repository": repository, "snapshot": {"id": new_id(), "name": f"s{number}"}, "node": "node-1",
                "volume": {"id": new_id(), "name": f"v{number}"}, "lineage": new_id(),
            })
            for number in range(6)
        ]  # fmt: skip
        assert len({rig.wait(job)["repository_id"] for job in begun}) == 1
