"""PostgreSQL on a volume, snapshotted five times under pgbench; each restored copy starts and passes its checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driver.core.sizes import MIB
from tests.engines import engine, mounted, run

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
CHECK = "SELECT sum(abalance) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_accounts"
TELLERS = "SELECT (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
AMCHECK = (
    "SELECT count(bt_index_check(c.oid, true)) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid "
    "JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p'"
)


def postgres(program: str, *arguments: str) -> str:
    """Run one of PostgreSQL's programs as its user."""
    user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
    return run(*user, str(BINARIES[0] / program), *arguments, cwd="/")


@contextmanager
def server(data: Path, sockets: Path) -> Iterator[None]:
    """PostgreSQL on `data`, reachable through `sockets` only."""
    log = sockets / "log"
    try:
        options = f"-k {sockets} -c listen_addresses=''"
        postgres("pg_ctl", "-D", str(data), "-w", "-t", "600", "-l", str(log), "-o", options, "start")
    except AssertionError:
        print(log.read_text()[-3000:])
        raise
    try:
        yield
    finally:
        postgres("pg_ctl", "-D", str(data), "-w", "-t", "600", "-m", "fast", "stop")


def ask(sockets: Path, query: str) -> str:
    return postgres("psql", "-h", str(sockets), "-Atqc", query, "postgres").strip()


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path("/var/tmp") / f"sf-pg-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_postgresql_comes_back_from_every_cut(sockets: Path) -> None:
    assert BINARIES, "PostgreSQL is not installed"
    with engine("--upload-rate", "40Mi") as made:
        device = made.volume("pg", 768 * MIB)
        run("mkfs.ext4", "-q", device)
        with mounted(device) as folder:
            data = folder / "data"
            data.mkdir()
            shutil.chown(data, "postgres", "postgres")
            postgres("initdb", "-D", str(data), "--data-checksums", "-A", "trust")
            with server(data, sockets):
                ask(sockets, "CREATE EXTENSION amcheck")
                postgres("pgbench", "-h", str(sockets), "-iqs", "5", "postgres")
                command = [str(BINARIES[0] / "pgbench"), "-h", str(sockets), "-c", "4", "-T", "3000", "postgres"]
                load = subprocess.Popen(
                    ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                )  # fmt: skip
                counts = []
                for number in range(5):
                    time.sleep(1)
                    counts.append(int(ask(sockets, "SELECT count(*) FROM pgbench_history")))
                    made.call("snapshot.create", volume="pg", name=f"pg-{number}")
                    shown = made.wait_snapshot(f"pg-{number}")
                    assert shown["state"] == "committed", shown
                    assert number or shown["session"]["preimages"] > 0, "later ones read little, and are soon done"
                assert load.poll() is None, "pgbench ended early"
                load.terminate()
                load.wait()
        for number in range(5):
            restored = made.restore(f"pg-{number}", f"pg-{number}")
            with mounted(restored) as folder:
                (folder / "data/postmaster.pid").unlink()  # the cut had a server, whose number may be somebody's here
                with server(folder / "data", sockets):
                    assert int(ask(sockets, "SELECT count(*) FROM pgbench_history")) >= counts[number]
                    assert ask(sockets, CHECK) == "t" and ask(sockets, TELLERS) == "t"
                    assert int(ask(sockets, AMCHECK)) > 10
            made.call("volume.detach", name=f"pg-{number}")
            made.call("volume.delete", name=f"pg-{number}")
