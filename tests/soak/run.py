"""The soak: one engine, four volumes, each with stamping writers on one half and fio with verification on the other;
snapshots in a row, each restored and compared; processes killed and the store taken away at random moments."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from driver.core.errors import NotFound, StillframeError
from driver.core.sizes import MIB
from tests.engines import Engine
from tests.servers import S3Server, credentials_file, rclone_server, versitygw_server
from tests.soak.killer import Killer
from tests.soak.stamps import Mismatch, Stamps

VOLUMES: Final = 4
_SIZE: Final = 96 * MIB
_STAMPED: Final = 48 * MIB
_PATIENCE_SECONDS: Final = 180.0
T = TypeVar("T")


class Soak:
    """One run; `report` is what build/soak.json holds."""

    def __init__(self, engine: Engine, store: S3Server, seconds: float, seed: int) -> None:
        self._engine = engine
        self._store = store
        self._until = time.monotonic() + seconds
        self._latest = self._until + _PATIENCE_SECONDS
        self._seconds = seconds
        self._dice = random.Random(seed)
        self._killer = Killer(engine, random.Random(seed + 1))
        self._faults: Counter[str] = Counter()
        self._compared = 0
        self._mismatches: list[str] = []
        self._io_errors: list[str] = []
        self._verified = 0
        self._stamps: list[Stamps] = []
        self._fio: list[subprocess.Popen[str]] = []

    def run(self) -> dict[str, Any]:
        devices = [self._engine.volume(f"v{n}", _SIZE) for n in range(VOLUMES)]
        self._stamps = [Stamps(device, _STAMPED, n) for n, device in enumerate(devices)]
        self._fio = [self._start_fio(device) for device in devices]
        for stamps in self._stamps:
            stamps.start()
        watchers = [threading.Thread(target=self._snapshots, args=[n], daemon=True) for n in range(VOLUMES)]
        for thread in watchers:
            thread.start()
        self._disturb()
        for thread in watchers:
            thread.join(_PATIENCE_SECONDS * 2)
            if thread.is_alive():
                self._mismatches.append("a snapshot or its restore does not come to its end")
        self._finish()
        return self._report()

    def _start_fio(self, device: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["fio", "--name=soak", f"--filename={device}", f"--offset={_STAMPED}", f"--size={_SIZE - _STAMPED}",
             "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1",
             "--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1", "--rate_iops=300", "--time_based",
             "--buffer_compress_percentage=90", "--verify_state_save=0", "--refill_buffers",
             f"--runtime={int(self._seconds)}", "--output-format=json"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    # --- what disturbs

    def _goes_on(self) -> bool:
        """Until the time is over, and, where the machine is slow, until there was enough of everything."""
        now = time.monotonic()
        return now < self._until or (now < self._latest and not (self._compared >= VOLUMES and self._killer.is_content()))

    def _disturb(self) -> None:
        store_at = time.monotonic() + 10
        while self._goes_on():
            time.sleep(self._dice.uniform(0.2, 1.0))
            self._killer.one()
            if time.monotonic() > store_at:
                self._dice.choice((self._take_the_store_away, self._take_the_store_away, self._hand_over))()
                store_at = time.monotonic() + self._dice.uniform(10, 25)

    def _take_the_store_away(self) -> None:
        assert self._store.process is not None
        if self._dice.random() < 0.5:
            self._store.process.send_signal(signal.SIGSTOP)
            time.sleep(self._dice.uniform(0.5, 2))
            self._store.process.send_signal(signal.SIGCONT)
            self._faults["store stopped for a while"] += 1
        else:
            self._store.stop()
            time.sleep(self._dice.uniform(0.2, 1))
            self._store.start()
            self._faults["store killed and started again"] += 1

    def _hand_over(self) -> None:
        if self._engine.take_over() != 0:
            self._mismatches.append("a keeper ended with an error at its handover")
        self._faults["handed over to a new engine"] += 1

    # --- what is compared

    def _snapshots(self, number: int) -> None:
        turn = 0
        while self._goes_on():
            turn += 1
            try:
                self._one_snapshot(number, f"s{number}-{turn}", f"r{number}-{turn}")
            except (Mismatch, TimeoutError, StillframeError, OSError) as error:
                self._mismatches.append(f"v{number}, snapshot {turn}: {error}")

    def _one_snapshot(self, number: int, name: str, restored: str) -> None:
        stamps = self._stamps[number]
        before = stamps.now()
        stamps.forget(before)
        self._insist(lambda: self._engine.call("snapshot.create", volume=f"v{number}", name=name))
        after = stamps.now()
        shown = self._insist(lambda: self._settled(name))
        if shown["state"] != "committed":
            raise Mismatch(f"{shown['state']}: {shown['error']}")
        volume = self._insist(lambda: self._restored(name, restored))
        image = bytearray(_STAMPED)
        with (self._engine.state / "volumes" / volume["id"] / "disk").open("rb") as file:
            file.readinto(image)
        with memoryview(image) as view:
            stamps.check(view, before, after)
        self._compared += 1
        self._insist(lambda: self._gone("volume.delete", name=restored))
        self._insist(lambda: self._gone("snapshot.delete", snapshot=name))

    def _gone(self, call: str, **arguments: str) -> None:
        """Delete something; a call before may have done it, and its answer was lost with who gave it."""
        with contextlib.suppress(NotFound):
            self._engine.call(call, **arguments)

    def _settled(self, name: str) -> dict[str, Any]:
        shown = self._engine.call("snapshot.show", snapshot=name)
        if shown["state"] == "uploading":
            raise BlockingIOError(f"snapshot {name} is uploading: {shown['progress']}")
        return shown

    def _restored(self, name: str, restored: str) -> dict[str, Any]:
        known = [volume for volume in self._engine.call("volume.list")["volumes"] if volume["name"] == restored]
        if not known:
            self._engine.call("snapshot.restore", snapshot=name, volume=restored)
        if not known or known[0]["state"] != "available":
            raise BlockingIOError(f"volume {restored} is being restored")
        return dict(known[0])

    @staticmethod
    def _insist(call: Callable[[], T]) -> T:
        """The call's result; asked again while processes are dying. Raises TimeoutError."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return call()
            except (StillframeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"after {_PATIENCE_SECONDS:.0f} s still: {error}") from error
                time.sleep(0.05)

    # --- the end

    def _finish(self) -> None:
        for number, stamps in enumerate(self._stamps):
            try:
                stamps.stop()
                now = stamps.now()
                image = bytearray(_STAMPED)
                with open(stamps.device, "rb") as file:
                    file.readinto(image)
                with memoryview(image) as view:
                    stamps.check(view, now, stamps.now())
            except (Mismatch, OSError) as error:
                self._mismatches.append(f"v{number} at the end: {error}")
            self._verified += stamps.verified
            self._io_errors += stamps.errors
        for number, fio in enumerate(self._fio):
            output = fio.communicate(timeout=_PATIENCE_SECONDS)[0]
            if fio.returncode:
                self._io_errors.append(f"fio on v{number} ended with {fio.returncode}: {output[-500:]}")
            else:
                self._verified += json.loads(output[output.index("{") :])["jobs"][0]["read"]["total_ios"]

    def _report(self) -> dict[str, Any]:
        info = self._engine.call("engine.info")["processes"]["volumes"]
        metrics = self._engine.call("metrics")
        return {
            "seconds": round(self._seconds),
            "kills": dict(self._killer.kills),
            "replays": sum(volume["counters"]["replayed_requests"] for volume in metrics["volumes"] if volume["counters"]),
            "kills_within_seal": self._killer.within_seal,
            "most_deaths_of_one_process_in_10_s": self._killer.most_deaths(),
            "faults": dict(self._faults),
            "writes_verified": self._verified,
            "snapshots_compared": self._compared,
            "given_up": sum(process["given_up"] for held in info.values() for process in held["processes"]),
            "mismatches": self._mismatches,
            "io_errors": self._io_errors,
        }


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """Run it on an engine and a store of its own; the report."""
    store = versitygw_server() or rclone_server()
    folder = Path(tempfile.mkdtemp(prefix="stillframe-test-", dir="/var/tmp"))
    engine = Engine(folder / "state", ("--grace", "2", "--upload-rate", "48Mi"))
    engine.repository(
        "store", f"s3://{store.make_bucket()}/soak", endpoint=store.endpoint, region="us-east-1",
        credentials=str(credentials_file(folder)),
    )  # fmt: skip
    try:
        engine.start()
        report = Soak(engine, store, seconds, seed).run()
        if report["mismatches"] or report["io_errors"]:
            report["log"] = engine.log.read_text()[-20_000:]
        return report
    finally:
        engine.clean()
        shutil.rmtree(folder, ignore_errors=True)
