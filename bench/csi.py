"""CSI's calls: how long each takes on an idle node and with 100 attached volumes; a snapshot under load; memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc

from bench import fio
from bench.engine import Engine, engine, volume
from bench.memory import pss
from bench.plan import GIB, MIB, Plan
from bench.programs import daemon, python_module, wait_until
from bench.report import AT_MOST, Results
from bench.servers import store
from bench.subjects import OURS
from csi import csi_pb2, csi_pb2_grpc

_VOLUMES: Final = 100
_CALLS: Final = 100
_SIZE_BYTES: Final = 64 * MIB
_LARGE_BYTES: Final = 10 * GIB
_MEMORY_GIB: Final = 2.0
_SNAPSHOT_MILLISECONDS: Final = 100.0
_VOLUME_SECONDS: Final = 1.0
_SNAPSHOTS: Final = 10
_Capability = csi_pb2.VolumeCapability


class Plugin:
    """The node plugin's services, and its process."""

    def __init__(self, endpoint: str, folder: Path, pid: int) -> None:
        channel = grpc.insecure_channel(endpoint)
        self.controller: Any = csi_pb2_grpc.ControllerStub(channel)
        self.node: Any = csi_pb2_grpc.NodeStub(channel)
        self.identity: Any = csi_pb2_grpc.IdentityStub(channel)
        self.folder = folder
        self.pid = pid

    def answers(self) -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(self.identity.Probe(csi_pb2.ProbeRequest(), timeout=2).ready.value)
        return False


@contextlib.contextmanager
def plugin(plan: Plan, running: Engine) -> Iterator[Plugin]:
    """`stillframe node --standalone`."""
    endpoint = f"unix://{plan.folder}/csi.sock"
    log = plan.folder / "node.log"
    command = python_module(
        "driver.cli.main", "--state", str(running.state), "node", "--standalone", "--endpoint", endpoint,
        "--max-volumes", "0",
    )  # fmt: skip
    with daemon(command, log, stop_seconds=30) as process:
        made = Plugin(endpoint, plan.folder, process.pid)
        wait_until("an answer of the node plugin", made.answers, process, log)
        yield made


def mounted() -> csi_pb2.VolumeCapability:
    mode = _Capability.AccessMode(mode=_Capability.AccessMode.SINGLE_NODE_WRITER)
    return _Capability(mount=_Capability.MountVolume(fs_type="ext4"), access_mode=mode)


def measure(plan: Plan, results: Results) -> None:
    """One round of each: the calls are many."""
    volumes = 10 if plan.quick else _VOLUMES
    with store(plan, plan.store) as server, engine(plan, server) as running, plugin(plan, running) as made:
        _calls(made, results, "idle")
        _large(made, results)
        _under_load(plan, running, made, results)
        names = [f"many-{number}" for number in range(volumes)]
        for name in names:
            running.call("volume.create", name=name, size_bytes=16 * MIB, provisioning="thin")
            running.call("volume.attach", name=name)
        _calls(made, results, f"{volumes} volumes")
        _memory(running, made, results, volumes)
        for name in names:
            running.call("volume.detach", name=name)
            running.call("volume.delete", name=name)


def _calls(made: Plugin, results: Results, where: str) -> None:
    """Each call, a volume's life long."""
    taken: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], request: Any) -> Any:
        started = time.perf_counter()
        answer = call(request, timeout=60)
        taken.setdefault(name, []).append((time.perf_counter() - started) * 1000)
        return answer

    for number in range(_CALLS):
        create = csi_pb2.CreateVolumeRequest(
            name=f"call-{number}", volume_capabilities=[mounted()],
            capacity_range=csi_pb2.CapacityRange(required_bytes=_SIZE_BYTES),
        )  # fmt: skip
        volume_id = timed("CreateVolume", made.controller.CreateVolume, create).volume.volume_id
        stage = made.folder / "stage" / str(number)
        target = made.folder / "pods" / str(number) / "volume"
        stage.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        here = {"volume_id": volume_id, "staging_target_path": str(stage), "volume_capability": mounted()}
        timed("NodeStageVolume", made.node.NodeStageVolume, csi_pb2.NodeStageVolumeRequest(**here))
        publish = csi_pb2.NodePublishVolumeRequest(**here, target_path=str(target))
        timed("NodePublishVolume", made.node.NodePublishVolume, publish)
        stats = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(target))
        timed("NodeGetVolumeStats", made.node.NodeGetVolumeStats, stats)
        get = csi_pb2.ControllerGetVolumeRequest(volume_id=volume_id)
        timed("ControllerGetVolume", made.controller.ControllerGetVolume, get)
        timed("ListVolumes", made.controller.ListVolumes, csi_pb2.ListVolumesRequest())
        timed("GetCapacity", made.controller.GetCapacity, csi_pb2.GetCapacityRequest())
        timed("Probe", made.identity.Probe, csi_pb2.ProbeRequest())
        snapshot = csi_pb2.CreateSnapshotRequest(source_volume_id=volume_id, name=f"call-{where}-{number}-{time.time_ns()}")
        found = timed("CreateSnapshot", made.controller.CreateSnapshot, snapshot).snapshot
        while not found.ready_to_use:
            time.sleep(0.02)
            found = made.controller.CreateSnapshot(snapshot, timeout=60).snapshot
        gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=found.snapshot_id)
        timed("DeleteSnapshot", made.controller.DeleteSnapshot, gone)
        unpublish = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        timed("NodeUnpublishVolume", made.node.NodeUnpublishVolume, unpublish)
        unstage = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(stage))
        timed("NodeUnstageVolume", made.node.NodeUnstageVolume, unstage)
        timed("DeleteVolume", made.controller.DeleteVolume, csi_pb2.DeleteVolumeRequest(volume_id=volume_id))
    for name, values in taken.items():
        results.case(f"csi: {name}, {where}, p50", OURS, statistics.median(values), "ms")
        results.case(f"csi: {name}, {where}, p99", OURS, statistics.quantiles(values, n=100)[98], "ms")


def _large(made: Plugin, results: Results) -> None:
    """A pod's wait for an ext4 volume of 10 GiB."""
    stage, target = made.folder / "stage" / "large", made.folder / "pods" / "large" / "volume"
    stage.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    create = csi_pb2.CreateVolumeRequest(
        name="large", volume_capabilities=[mounted()], capacity_range=csi_pb2.CapacityRange(required_bytes=_LARGE_BYTES)
    )
    volume_id = made.controller.CreateVolume(create, timeout=60).volume.volume_id
    here = {"volume_id": volume_id, "staging_target_path": str(stage), "volume_capability": mounted()}
    made.node.NodeStageVolume(csi_pb2.NodeStageVolumeRequest(**here), timeout=60)
    made.node.NodePublishVolume(csi_pb2.NodePublishVolumeRequest(**here, target_path=str(target)), timeout=60)
    seconds = time.perf_counter() - started
    results.ratio("csi: create, stage and publish ext4 of 10 GiB", seconds, AT_MOST, _VOLUME_SECONDS, unit="s")
    made.node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target)))
    made.node.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(stage)))
    made.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id))


def _under_load(plan: Plan, running: Engine, made: Plugin, results: Results) -> None:
    """CreateSnapshot's answer while 16 writes are in hand."""
    node = made.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest()).node_id
    with volume(running, "loaded", plan.scaled(512 * MIB)) as device:
        handle = f"{node}:{running.call('volume.show', name='loaded')['id']}"
        load = fio.Running(device, fio.Job("randwrite", 16, 600))
        values = []
        try:
            for number in range(_SNAPSHOTS):
                time.sleep(0.5)
                request = csi_pb2.CreateSnapshotRequest(source_volume_id=handle, name=f"loaded-{number}-{time.time_ns()}")
                started = time.perf_counter()
                found = made.controller.CreateSnapshot(request, timeout=60).snapshot
                values.append((time.perf_counter() - started) * 1000)
                made.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=found.snapshot_id), timeout=60)
        finally:
            load.stop()
    results.case("csi: CreateSnapshot with 16 writes in hand, longest", OURS, max(values), "ms")
    results.ratio(
        "csi: CreateSnapshot with 16 writes in hand", statistics.median(values), AT_MOST, _SNAPSHOT_MILLISECONDS, unit="ms"
    )


def _memory(running: Engine, made: Plugin, results: Results, volumes: int) -> None:
    """Pss of the plugin and of all the engine's processes, with everything that they share."""
    shown = running.call("engine.info")
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    keeper = next(parent for parent, found in children.items() if shown["pid"] in found)
    wanted, tree = [keeper], list[int]()
    while wanted:
        pid = wanted.pop()
        tree.append(pid)
        wanted += children.get(pid, [])
    total = sum(sum(pss(pid).values()) for pid in [*tree, made.pid])
    results.case(f"csi: memory of plugin and engine, {volumes} volumes", OURS, total / MIB, "MiB")
    results.ratio(
        f"csi: memory of plugin and engine with {volumes} volumes", total / GIB, AT_MOST, _MEMORY_GIB, unit="GiB"
    )
