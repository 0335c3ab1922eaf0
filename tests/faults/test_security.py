"""Who may reach what, and where no secret may stand."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driver.core.ids import snapshot_id
from driver.core.sizes import MIB
from tests.engines import engine, run
from tests.faults.test_deaths import senders
from tests.oracle import LoggedWriter, fill
from tests.servers import ACCESS, credentials_file, rclone_server
from tests.waiting import wait_until

SECRET = "a-secret-that-must-not-be-seen-anywhere"
SIZE = 32 * MIB


def test_what_is_in_the_state_folder_is_roots_alone() -> None:
    with engine() as made:
        made.volume("v", SIZE)
        made.call("snapshot.create", volume="v", name="s")
        made.wait_snapshot("s")
        below = [Path(at, name) for at, folders, files in os.walk(made.state) for name in folders + files]
        for path in (made.state, *below):
            if path.parent == made.state / "dev" or path.name == "repositories.toml":
                continue  # device nodes have the kernel's modes in a folder of 0700; the table is the operator's
            with contextlib.suppress(FileNotFoundError):  # it was there for a moment
                found = path.lstat()
                allowed = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
                assert found.st_mode & 0o777 & ~allowed == 0, f"{path}: {oct(found.st_mode)}"
                assert found.st_uid == os.geteuid()


def test_another_user_reaches_no_socket() -> None:
    with engine() as made:
        os.chmod(made.state.parent, 0o755)
        for name in ("engine.sock", "transfer.sock", "keeper.sock"):
            probe = f"import socket; socket.socket(socket.AF_UNIX).connect({str(made.state / 'run' / name)!r})"
            done = subprocess.run(
                ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c", probe],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "PermissionError" in done.stderr or "Permission denied" in done.stderr, done


def test_a_socket_that_was_opened_up_by_mistake_still_asks_who_is_there() -> None:
    with engine() as made:
        for path in (made.state.parent, made.state, made.state / "run"):
            os.chmod(path, 0o755)
        for name in ("engine.sock", "transfer.sock", "keeper.sock"):
            os.chmod(made.state / "run" / name, 0o666)
            probe = (
                "import contextlib, socket, sys\n"
                f"s = socket.socket(socket.AF_UNIX); s.connect({str(made.state / 'run' / name)!r}); s.settimeout(150)\n"
                "body = b'{\"v\":1,\"call\":\"list\"}'\n"
                "with contextlib.suppress(BrokenPipeError): s.sendall(len(body).to_bytes(4, 'big') + body)\n"
                "sys.stdout.write(s.recv(4096).decode(errors='replace'))"
            )
            done = subprocess.run(
                ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", probe],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "only root may speak" in done.stdout, done
        assert made.call("engine.info")


def text(path: Path) -> str:
    """What it holds; nothing, if it or its process is gone by now."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return path.read_text(errors="replace")
    return ""


def test_no_secret_is_in_a_log_an_argument_an_environment_or_an_error() -> None:
    """With keys that are right, and with ones that the store refuses."""
    server = rclone_server()
    with engine("--upload-rate", "8Mi") as made:
        bucket = server.make_bucket()
        for name, access in (("right", ACCESS), ("wrong", "somebody-else")):
            secret = SECRET if name == "wrong" else None
            credentials = credentials_file(made.state.parent, access, *([secret] if secret else []))
            made.repository(name, f"s3://{bucket}/p", endpoint=server.endpoint, region="us-east-1",
                            credentials=str(credentials))  # fmt: skip
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        told = []
        try:
            made.call("snapshot.create", volume="v", name="refused", repository="wrong")
        except Exception as error:
            told.append(f"{error} {error.__dict__}")
        assert told, "the store refuses them"
        made.call("snapshot.create", volume="v", name="s", repository="right")
        info = made.call("engine.info")
        processes = [info["pid"], info["keeper"], info["processes"]["transfer"], *senders(made)]
        for pid in processes:
            told += [text(Path(f"/proc/{pid}/cmdline")), text(Path(f"/proc/{pid}/environ"))]
        told += [made.log.read_text(), str(made.wait_snapshot("s", repository="right")), str(info)]
        told += [text(made.state / "sessions" / snapshot_id("s") / name) for name in ("session.json", "statistics.json")]
        everything = "\n".join(told)
        assert SECRET not in everything
        assert "not-a-real-secret" not in everything


def test_no_process_that_knows_a_secret_leaves_a_core() -> None:
    program = "import ctypes, sys; open(sys.argv[1], 'w').write(str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))"
    folder = Path("/var/tmp") / f"stillframe-test-dumpable-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "probe.py").write_text(program)
        run(sys.executable, "-m", "driver.host.bound", str(os.getpid()), "probe", str(folder / "answer"),
            env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{folder}"})  # fmt: skip
        assert (folder / "answer").read_text() == "0"  # PR_GET_DUMPABLE
    finally:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        run("rm", "-r", str(folder))


def dumped_core(folder: Path, *command: str, ready: str) -> bool:
    """Whether a program that is told to dump its core (SIGABRT) once its output says `ready` does so."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["prlimit", "--core=unlimited:unlimited", "--", *command], stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, cwd=folder, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
    wait_until(lambda: ready in log.read_text() or list(folder.rglob(ready)) or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    os.kill(process.pid, signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT
    return os.WCOREDUMP(status)


def test_programs_that_are_started_by_themselves_leave_no_core(tmp_path: Path) -> None:
    """The transfer supervisor and the node plugin of a pod have no parent of ours that sees to it."""
    if not dumped_core(tmp_path, sys.executable, "-c", "import time; print('on', flush=True); time.sleep(600)", ready="on"):
        pytest.skip("no program leaves a core here (ulimit, /proc/sys/kernel/core_pattern)")
    command = [sys.executable, "-m", "driver.cli.main", "--state", str(tmp_path / "s")]
    (tmp_path / "s" / "run").mkdir(parents=True)
    assert not dumped_core(tmp_path, *command, "engine", "transfer", ready="transfer.sock")
    assert not dumped_core(tmp_path, *command, "node", "--endpoint", f"unix://{tmp_path}/csi.sock", ready="CSI is served")


NESTED = b"[" * 200_000
NASTY = [
    b"\xff\xff\xff\xff", b"\x00\x3f\xff\xff" + b"x" * 100, len(NESTED).to_bytes(4, "big") + NESTED,
    *(len(body).to_bytes(4, "big") + body for body in (
        b"{}", b"[]", b'{"v":1}', b'{"v":99,"call":"list"}', b'{"v":1,"call":[]}', b'{"v":1,"call":{"a":1},"id":[]}',
        b'{"v":1,"call":"take_over"}', b'{"v":1,"call":"take_over","handover":{}}',
        b'{"v":1,"call":"take_over","handover":1}', b'{"v":1,"call":"engine.info","args":[]}',
        b'{"v":1,"call":"volume.create","args":{"name":[]}}',
        b'{"v":1,"call":"volume.create","args":{"name":"x","size_bytes":"y"}}',
        b'{"v":1,"call":"start","job":[],"kind":{},"spec":0}', b'{"v":1,"call":"status","job":"x","wait_seconds":"y"}',
    )),
]  # fmt: skip


def test_what_is_no_message_ends_no_process() -> None:
    """Everything on every socket; the keeper's death would be that of the devices."""
    with engine() as made:
        device = made.volume("v", SIZE)
        before = made.call("engine.info")
        with LoggedWriter(device, SIZE, seed=20) as writer:
            for name in ("engine.sock", "transfer.sock", "keeper.sock"):
                for sent in NASTY:
                    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
                        peer.settimeout(60)
                        peer.connect(str(made.state / "run" / name))
                        peer.sendall(sent)
                        peer.shutdown(socket.SHUT_WR)
                        while peer.recv(65536):
                            pass
                    made.wait_ready()
            writer.go_on()
        after = made.call("engine.info")
        assert (after["keeper"], after["processes"]["volumes"].keys()) == (
            before["keeper"], before["processes"]["volumes"].keys(),
        )  # fmt: skip
        assert "RecursionError" not in made.log.read_text()


def test_a_silent_peer_keeps_nothing_from_being_started_again() -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        victims = [pid for key, pid in made.processes("v").items() if key.startswith("serve")]
        with LoggedWriter(device, SIZE, seed=21) as writer, socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(made.state / "run/keeper.sock"))
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
            writer.go_on()  # else the keeper waits for a peer that says nothing
