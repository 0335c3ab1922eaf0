"""`python -m bench [steady,session,cut,upload,memory,csi,recovery,incremental,all] [--rounds N] [--seconds S] [--quick]`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console

from bench import csi, cut, incremental, memory, outage, recovery, session, steady, upload
from bench.plan import GIB, Plan
from bench.programs import ProgramFailed, missing
from bench.report import Results
from bench.subjects import clean_up
from driver.core.errors import StillframeError

BENCHES: Final[Mapping[str, list[Callable[[Plan, Results], None]]]] = {
    "steady": [steady.measure],
    "session": [session.measure, outage.measure],
    "cut": [cut.measure],
    "upload": [upload.measure],
    "memory": [memory.measure],
    "csi": [csi.measure],
    "recovery": [recovery.measure],
    "incremental": [incremental.measure],
}
_ROOT: Final = Path(__file__).resolve().parent.parent
_FREE_BYTES: Final = 12 * GIB


def parse(arguments: list[str]) -> tuple[list[str], Plan]:
    """The benches to run, and how. Exits with a message where the words are wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", allow_abbrev=False)
    chosen = os.environ.get("BENCH") or "all"
    parser.add_argument("benches", nargs="*", default=[chosen], help=f"{', '.join(BENCHES)} or all ($BENCH)")
    parser.add_argument("--rounds", type=int, help="of every comparison, subjects in turn (3; 1 with --quick)")
    parser.add_argument("--seconds", type=int, help="of one fio run (6; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small and short: tries the harness, measures nothing")
    parser.add_argument("--store", choices=["sink", "versitygw", "rclone"], default="sink", help="the sessions' server")
    parser.add_argument("--folder", type=Path, default=_ROOT / "build" / "bench", help="on the disk to measure")
    given = parser.parse_args(arguments)
    names = [name for word in given.benches for name in word.split(",") if name]
    unknown = sorted(set(names) - set(BENCHES) - {"all"})
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHES)} and all")
    build = _ROOT / "build"
    plan = Plan(
        rounds=given.rounds or (1 if given.quick else 3),
        seconds=given.seconds or (2 if given.quick else 6),
        quick=given.quick,
        store=given.store,
        folder=given.folder.resolve(),
        build=build,
        docs=build if given.quick else _ROOT / "docs",
    )
    return list(BENCHES) if "all" in names else [name for name in BENCHES if name in names], plan


def check(plan: Plan) -> None:
    """Raises ProgramFailed with one line that says what is missing."""
    packages = missing()
    if packages:
        raise ProgramFailed(f"programs are missing; install them: apt-get install {' '.join(packages)}")
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        raise ProgramFailed("the benchmarks need root and /dev/fuse")
    plan.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(plan.folder).free < _FREE_BYTES:
        raise ProgramFailed(f"{plan.folder} has less than 12 GiB free; choose another --folder")


def measure(names: list[str], plan: Plan, results: Results, console: Console) -> None:
    """Run the benches one after another; one that fails is reported and the others go on."""
    for name in names:
        for part in BENCHES[name]:
            started = time.monotonic()
            try:
                part(plan, results)
            except (ProgramFailed, StillframeError, OSError) as error:
                traceback.print_exc()
                results.errors.append(f"{name}: {error}")
            finally:
                results.save(plan.build / "bench.json")
            console.print(f"{part.__module__} took {time.monotonic() - started:.0f} s")


def on_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    names, plan = parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = Results()
    try:
        check(plan)
        clean_up(plan.folder)
    except ProgramFailed as error:
        sys.exit(f"error: {error}")
    try:
        measure(names, plan, results, console)
    finally:
        results.show(console)
    if not results.errors:
        shutil.rmtree(plan.folder, ignore_errors=True)
    sys.exit(1 if results.errors else 0)


if __name__ == "__main__":
    main()
