"""Who may reach what, and where no secret may stand."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from driver.core.sizes import MIB
from tests.engines import engine, run
from tests.faults.test_deaths import senders
from tests.servers import ACCESS, credentials_file, rclone_server

SECRET = "a-secret-that-must-not-be-seen-anywhere"
SIZE = 32 * MIB


def test_what_is_in_the_state_folder_is_roots_alone() -> None:
    with engine() as made:
        made.volume("v", SIZE)
        made.call("snapshot.create", volume="v", name="s")
        made.wait_snapshot("s")
        for path in (made.state, *made.state.rglob("*")):
            if path.parent == made.state / "dev" or path.name == "repositories.toml":
                continue  # device nodes have the kernel's modes in a folder of 0700; the table is the operator's
            mode = path.lstat().st_mode
            allowed = 0o700 if stat.S_ISDIR(mode) else 0o600
            assert mode & 0o777 & ~allowed == 0, f"{path}: {oct(mode)}"
            assert path.lstat().st_uid == os.geteuid()


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
                f"s = socket.socket(socket.AF_UNIX); s.connect({str(made.state / 'run' / name)!r}); s.settimeout(20)\n"
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


def test_no_secret_is_in_a_log_an_argument_an_environment_or_an_error() -> None:
    """With keys that are right, and with ones that the store refuses."""
    server = rclone_server()
    with engine("--upload-rate", "4Mi") as made:
        bucket = server.make_bucket()
        for name, access in (("right", ACCESS), ("wrong", "somebody-else")):
            secret = SECRET if name == "wrong" else None
            credentials = credentials_file(made.state.parent, access, *([secret] if secret else []))
            made.repository(name, f"s3://{bucket}/p", endpoint=server.endpoint, region="us-east-1",
                            credentials=str(credentials))  # fmt: skip
        device = made.volume("v", SIZE)
        run("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=32", "oflag=direct", "status=none")
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
            told += [Path(f"/proc/{pid}/cmdline").read_text(), Path(f"/proc/{pid}/environ").read_text()]
        told += [made.log.read_text(), str(made.wait_snapshot("s", repository="right")), str(info)]
        told += [path.read_text(errors="replace") for path in (made.state / "sessions").rglob("*.json")]
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
