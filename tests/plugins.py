"""A real node plugin on a real engine, and CSI calls to it, for tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from csi import csi_pb2, csi_pb2_grpc
from tests.engines import Engine
from tests.waiting import wait_until

CHANNEL_OPTIONS = (("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1))
"""A process that is started again is not asked over a connection of the one before."""
MODE = csi_pb2.VolumeCapability.AccessMode


def mount_capability(
    fs_type: str = "", mode: MODE.Mode.ValueType = MODE.SINGLE_NODE_WRITER, flags: Sequence[str] = ()
) -> csi_pb2.VolumeCapability:
    mount = csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=flags)
    return csi_pb2.VolumeCapability(mount=mount, access_mode=MODE(mode=mode))


def block_capability(mode: MODE.Mode.ValueType = MODE.SINGLE_NODE_WRITER) -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=MODE(mode=mode))


class Plugin:
    """`stillframe node --standalone` in a process of its own; `log` is its output."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.folder = engine.state.parent
        self.endpoint = f"unix://{self.folder}/csi.sock"
        self.log = self.folder / "node.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: grpc.Channel | None = None

    def command(self, *arguments: str) -> list[str]:
        """What follows the program's name."""
        return ["--state", str(self.engine.state), "node", "--standalone", "--endpoint", self.endpoint, *arguments]

    def start_process(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "driver.cli.main", *self.command(*arguments)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def is_served(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.endpoint.removeprefix("unix://")) == 0

    def times_served(self) -> int:
        """How often the log says that the calls are served."""
        return self.log.read_text().count('"CSI is served"') if self.log.exists() else 0

    def start(self, *arguments: str) -> Plugin:
        """Start, and wait until it answers, and has said so: then all else that it serves is there, too."""
        said = self.times_served()
        self.start_process(*arguments)
        wait_until(lambda: self.times_served() > said and self.is_served(), told=self.log.read_text)
        self.channel = grpc.insecure_channel(self.endpoint, CHANNEL_OPTIONS)
        grpc.channel_ready_future(self.channel).result(120)
        return self

    @property
    def identity(self) -> Any:
        return csi_pb2_grpc.IdentityStub(self._channel())

    @property
    def controller(self) -> Any:
        return csi_pb2_grpc.ControllerStub(self._channel())

    @property
    def groups(self) -> Any:
        return csi_pb2_grpc.GroupControllerStub(self._channel())

    @property
    def node(self) -> Any:
        return csi_pb2_grpc.NodeStub(self._channel())

    def _channel(self) -> grpc.Channel:
        assert self.channel is not None
        return self.channel

    def create(self, name: str, size_bytes: int, capability: csi_pb2.VolumeCapability | None = None, **more: Any) -> str:
        """A volume's handle."""
        request = csi_pb2.CreateVolumeRequest(
            name=name, capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes),
            volume_capabilities=[capability or mount_capability()], **more,
        )  # fmt: skip
        return str(self.controller.CreateVolume(request, timeout=120).volume.volume_id)

    def stage(self, volume: str, capability: csi_pb2.VolumeCapability | None = None, **context: str) -> Path:
        """The staging path."""
        path = self.folder / "staging" / volume.rpartition(":")[2]
        path.mkdir(parents=True, exist_ok=True)
        self.node.NodeStageVolume(
            csi_pb2.NodeStageVolumeRequest(
                volume_id=volume, staging_target_path=str(path), volume_capability=capability or mount_capability(),
                volume_context=context,
            ),
            timeout=120,
        )  # fmt: skip
        return path

    def publish(
        self, volume: str, pod: str, capability: csi_pb2.VolumeCapability | None = None, *, readonly: bool = False
    ) -> Path:
        """The path in the pod."""
        target = self.folder / "pods" / pod / "volume"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.node.NodePublishVolume(
            csi_pb2.NodePublishVolumeRequest(
                volume_id=volume, staging_target_path=str(self.folder / "staging" / volume.rpartition(":")[2]),
                target_path=str(target), volume_capability=capability or mount_capability(), readonly=readonly,
            ),
            timeout=120,
        )  # fmt: skip
        return target

    def unpublish(self, volume: str, target: Path) -> None:
        self.node.NodeUnpublishVolume(
            csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target)), timeout=120
        )

    def unstage(self, volume: str) -> None:
        path = self.folder / "staging" / volume.rpartition(":")[2]
        self.node.NodeUnstageVolume(
            csi_pb2.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=str(path)), timeout=120
        )

    def snapshot(self, volume: str, name: str, **parameters: str) -> csi_pb2.Snapshot:
        """As the snapshotter does: asked by name until it is ready."""
        request = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name=name, parameters=parameters)

        def ready() -> csi_pb2.Snapshot | None:
            found: csi_pb2.Snapshot = self.controller.CreateSnapshot(request, timeout=120).snapshot
            return found if found.ready_to_use else None

        return wait_until(ready, told=self.log.read_text)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.process = None
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
        self.kill()

    def unmount_all(self) -> None:
        """Whatever a failed test left mounted below the folder."""
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            target = line.split()[4]
            if target.startswith((f"{self.folder}/staging", f"{self.folder}/pods", f"{self.folder}/sanity")):
                subprocess.run(["umount", "-l", target], check=False)


@contextlib.contextmanager
def plugin(engine: Engine, *arguments: str) -> Iterator[Plugin]:
    """A running plugin on a running engine."""
    made = Plugin(engine)
    try:
        yield made.start(*arguments)
    except BaseException:
        print(made.log.read_text() if made.log.exists() else "no log of the node plugin")
        raise
    finally:
        made.kill()
        made.unmount_all()
