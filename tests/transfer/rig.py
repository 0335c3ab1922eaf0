"""A state folder with a real transfer supervisor, and sessions to send through it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.core import messages
from driver.core.errors import StillframeError
from driver.core.ids import new_id, snapshot_id
from driver.transfer.packbuffer import Header
from tests.servers import S3Server, credentials_file, repository_tables
from tests.transfer.feed import Feed, make_packs


class Rig:
    """`repositories` are tables of repositories.toml; the supervisor reads them at each job."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.folder = folder
        self.repositories: dict[str, dict[str, str]] = {}
        self.supervisor: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"

    def start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        with self.log.open("ab") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "driver.transfer.supervisor", "--state", str(self.state)],
                stdin=subprocess.DEVNULL, stderr=log,
                env={**environment, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(self.folder)},
            )  # fmt: skip
        deadline = time.monotonic() + 150
        while True:
            try:
                self.call("list")
                return
            except OSError:
                assert self.supervisor.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.supervisor is not None:
            self.supervisor.send_signal(number)
            self.supervisor.wait(120)
            self.supervisor = None

    def call(self, name: str, fds: Iterable[int] = (), **arguments: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.state / "run" / "transfer.sock"))
            answer, _ = messages.call(connection, {"call": name, **arguments}, list(fds))
            return dict(answer["result"])

    def begin_job(self, kind: str, spec: dict[str, Any], fds: Iterable[int] = ()) -> str:
        job = new_id()
        self.call("start", fds, job=job, kind=kind, spec=spec)
        return job

    def wait(self, job: str, seconds: float = 200.0) -> dict[str, Any]:
        """The result of a job. Raises what it failed with."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.call("status", job=job, wait_seconds=5)
            if status["state"] != "running":
                break
            assert time.monotonic() < deadline, status
        if status["state"] == "failed":
            raise StillframeError.from_message(status["error"])
        return dict(status["result"])

    def run(self, kind: str, spec: dict[str, Any], fds: Iterable[int] = ()) -> dict[str, Any]:
        return self.wait(self.begin_job(kind, spec, fds))

    def add(self, name: str, **fields: str) -> str:
        """Add a repository; its name."""
        self.repositories[name] = fields
        repository_tables(self.state, **self.repositories)
        return name

    def add_folder(self, name: str = "folder") -> str:
        path = self.folder / f"repository-{name}"
        path.mkdir()
        return self.add(name, url=f"file://{path}")

    def add_s3(self, server: S3Server, name: str = "s3") -> str:
        return self.add(
            name, url=f"s3://{server.make_bucket()}/a/prefix", endpoint=server.endpoint,
            credentials=str(credentials_file(self.folder)),
        )  # fmt: skip

    def session(self, repository: str, volume: bytes, packs: int = 3, **changes: Any) -> Session:
        return Session(self, repository, volume, packs, **changes)

    def restore(self, repository: str, snapshot: str, size_bytes: int) -> bytes:
        """The bytes of a file that a snapshot was restored into."""
        path = self.folder / f"restored-{uuid.uuid4()}"
        with path.open("w+b") as file:
            file.truncate(size_bytes)
            self.run("restore", {"repository": repository, "snapshot": snapshot}, [file.fileno()])
        data = path.read_bytes()
        path.unlink()
        return data


class Session:
    """A session of a volume: its pack buffers, its spool, its feed."""

    def __init__(self, rig: Rig, repository: str, volume: bytes, packs: int, **changes: Any) -> None:
        self.rig = rig
        self.name = f"snap-{uuid.uuid4()}"
        self.id = snapshot_id(self.name)
        self.volume_id = new_id()
        self.fd = make_packs(packs)
        self.feed = Feed(self.fd, volume)
        self.spool = os.open(rig.folder / f"spool-{self.id}", os.O_RDWR | os.O_CREAT)
        self.spec: dict[str, Any] = {
            "repository": repository,
            "snapshot": {"id": self.id, "name": self.name, "created": "2026-01-02T03:04:05.678901+00:00"},
            "volume": {
                "id": self.volume_id, "name": "vol", "size_bytes": len(volume), "logical_block_size": 4096,
            },
            "lineage": new_id(), "node": "node-1", "upload_rate_bytes": 0, **changes,
        }  # fmt: skip

    def begin(self) -> dict[str, Any]:
        begun = self.rig.run("begin", {**self.spec, "snapshot": {"id": self.id, "name": self.name}})
        self.spec["repository_id"] = begun["repository_id"]
        self.feed.packs.set(Header.REQUESTS, begun["requests"])
        return begun

    def start_send(self) -> str:
        return self.rig.begin_job("send", self.spec, [self.fd, self.spool])

    def send(self) -> dict[str, Any]:
        """Begin, feed and send, to the commit."""
        self.begin()
        thread = self.feed.start()
        result = self.rig.wait(self.start_send())
        thread.join()
        return result

    def close(self) -> None:
        self.feed.stop.set()
        self.feed.may_end.set()
        os.close(self.fd)
        os.close(self.spool)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.start()
    yield made
    made.stop()
    log = made.log.read_text()
    assert "Traceback" not in log, log
    shutil.rmtree(tmp_path, ignore_errors=True)
