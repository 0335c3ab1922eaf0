"""Each Node call, killed (kill -9 of the plugin) before and after everything that it does, and made again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.sizes import MIB
from driver.host import filesystems, mountinfo
from tests.engines import Engine, engine
from tests.plugins import Plugin, block_capability, mount_capability
from tests.waiting import wait_until

SIZE = 64 * MIB
STEPS_MAX = 80


class Stepped(Plugin):
    """A plugin that dies where `order` says. All that run, one after another, are forked from one process."""

    def __init__(self, of: Engine) -> None:
        super().__init__(of)
        self.order = self.folder / "order"
        self.order.write_text("none 0")
        self.pid: int | None = None
        with self.log.open("ab") as log:
            self.parent = subprocess.Popen(
                [sys.executable, "-m", "tests.node.stepping", str(self.order), *self.command()], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def start_process(self, *arguments: str) -> None:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write("\n")
        self.parent.stdin.flush()
        self.pid = int(self.parent.stdout.readline())

    def kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            assert self.parent.stdout is not None
            self.parent.stdout.readline()
            self.pid = None
        super().kill()

    def end(self) -> None:
        self.kill()
        with self.parent:
            pass
        self.unmount_all()

    def dies_at(self, method: str, step: int, call: Callable[[], Any]) -> bool:
        """Make the call with a plugin that dies at the step; whether it got that far. A new plugin runs afterwards."""
        self.order.write_text(f"{method} {step}")
        with contextlib.suppress(grpc.RpcError):
            call()
        died = self.order.read_text().startswith("died")
        self.order.write_text("none 0")
        if died:
            self.kill()
            self.start()
        return died


@pytest.fixture(scope="module")
def made() -> Iterator[Engine]:
    with engine() as running:
        yield running


@pytest.fixture
def one(made: Engine) -> Iterator[Stepped]:
    running = Stepped(made)
    try:
        running.start()
        yield running
    except BaseException:
        print(running.log.read_text()[-8000:])
        raise
    finally:
        running.end()


def again(call: Callable[[], Any]) -> None:
    """Make the call as kubelet does, which comes again: a program that the killed plugin had started goes on without it."""

    def is_done() -> bool:
        try:
            call()
        except grpc.RpcError as error:
            if "in use" not in str(error.details()):
                raise
            return False
        return True

    wait_until(is_done)


CAPABILITIES = {"ext4": mount_capability("ext4"), "xfs": mount_capability("xfs"), "block": block_capability()}


@pytest.mark.parametrize("kind", list(CAPABILITIES))
def test_a_node_call_that_died_at_any_step_is_made_again(one: Stepped, kind: str) -> None:
    """Each step once, on a fresh volume: staged, used, and taken down; what was written through it is there."""
    capability = CAPABILITIES[kind]
    step, left = 0, {"NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"}
    while left:
        step += 1
        assert step < STEPS_MAX
        volume = one.create(f"{kind}-{step}", SIZE, capability)
        target = one.folder / "pods" / f"{kind}-{step}" / "volume"
        calls: dict[str, Callable[[], Any]] = {
            "NodeStageVolume": lambda: one.stage(volume, capability),  # noqa: B023
            "NodePublishVolume": lambda: one.publish(volume, f"{kind}-{step}", capability),  # noqa: B023
            "NodeUnpublishVolume": lambda: one.unpublish(volume, target),  # noqa: B023
            "NodeUnstageVolume": lambda: one.unstage(volume),  # noqa: B023
        }
        for method, call in calls.items():
            if method in left and not one.dies_at(method, step, call):
                left.discard(method)
            again(call)
            if method == "NodePublishVolume":
                use(target, kind)
        assert not target.exists()
        assert not one.engine.call("volume.show", name=volume.rpartition(":")[2])["attached"]
        one.stage(volume, capability)
        used(one.publish(volume, f"{kind}-{step}", capability), kind)
        one.unpublish(volume, target)
        one.unstage(volume)
        one.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume))
    assert step > 5


def use(target: Path, kind: str) -> None:
    """Write to the volume."""
    if kind == "block":
        target.write_bytes(b"kept" * 1024)
    else:
        (target / "file").write_text("kept")
        assert len(mountinfo.mounts_at(str(target))) == 1


def used(target: Path, kind: str) -> None:
    """What `use` wrote is there."""
    if kind == "block":
        with target.open("rb") as file:
            assert file.read(4) == b"kept"
    else:
        assert (target / "file").read_text() == "kept"


def test_a_growth_that_died_at_any_step_is_made_again(one: Stepped) -> None:
    """xfs, mounted; ext4 when it is staged again, before its mount, so that no right to resize it online is needed."""
    for kind in ("xfs", "ext4"):
        capability = CAPABILITIES[kind]
        size = 300 * MIB
        volume = one.create(f"growing-{kind}", size, capability)
        staged = one.stage(volume, capability)
        (staged / "file").write_text("kept")
        step = 0
        while True:
            step += 1
            size += 40 * MIB
            grown = csi_pb2.ControllerExpandVolumeRequest(
                volume_id=volume, capacity_range=csi_pb2.CapacityRange(required_bytes=size), volume_capability=capability
            )
            one.controller.ControllerExpandVolume(grown)
            if kind == "xfs":
                expand = csi_pb2.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(staged))
                died = one.dies_at("NodeExpandVolume", step, lambda: one.node.NodeExpandVolume(expand))  # noqa: B023
                again(lambda: one.node.NodeExpandVolume(expand))  # noqa: B023
            else:
                one.unstage(volume)
                died = one.dies_at("NodeStageVolume", step, lambda: one.stage(volume, capability))  # noqa: B023
                again(lambda: one.stage(volume, capability))  # noqa: B023
            device = str(one.engine.call("volume.show", name=volume.rpartition(":")[2])["device"])
            assert not filesystems.needs_growth(device, kind)
            assert (staged / "file").read_text() == "kept"
            if not died:
                break
        assert step > 3
        one.unstage(volume)
