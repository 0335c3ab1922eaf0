"""Which mounts lost their device, and which pods are hurt by it."""

from __future__ import annotations

from driver.controller.revive import victims
from driver.controller.seen import PodClaims, VolumeSeen
from driver.core.ids import new_id
from driver.host.mountinfo import Mount
from driver.node.dead import dead_targets

ONE, TWO = new_id(), new_id()
DEVICES = "/var/lib/stillframe/dev"


def file_system(name: str, device: str) -> Mount:
    return Mount(1, 0, device, "/", f"/staged/{name}", "ext4", f"{DEVICES}/{name}", (), ())


def node(name: str, *, removed: bool = False) -> Mount:
    root = f"/{name}//deleted" if removed else f"/{name}"
    return Mount(1, 0, "0:99", root, f"/pods/{name}", "tmpfs", "stillframe-dev", (), ())


def test_a_file_system_is_dead_when_its_volume_has_another_device_or_none() -> None:
    mounts = [file_system("same", "7:1"), file_system("other", "7:2"), file_system("none", "7:3")]
    found = dead_targets(mounts, DEVICES, {"same": "7:1", "other": "7:9"})
    assert found == {"other": "/staged/other", "none": "/staged/none"}


def test_a_raw_device_is_dead_when_its_node_was_removed() -> None:
    assert dead_targets([node("raw"), node("gone", removed=True)], DEVICES, {"raw": "7:1"}) == {"gone": "/pods/gone"}


def test_what_is_not_of_a_volume_is_left_alone() -> None:
    whole = Mount(1, 0, "0:99", "/", DEVICES, "tmpfs", "stillframe-dev", (), ())
    other = Mount(1, 0, "7:4", "/", "/mnt", "ext4", "/dev/loop4", (), ())
    assert dead_targets([whole, other], DEVICES, {}) == {}


def volume(handle: str, claim: str, driver: str = "csi.stillframe.io") -> VolumeSeen:
    return VolumeSeen(f"pv-{claim}", driver, handle, ("shop", claim), "uid")


def pod(name: str, claim: str, node: str = "node-1", *, runs: bool = True) -> PodClaims:
    return PodClaims("shop", name, node, (claim,), f"uid-{name}", runs, True)


def test_pods_that_run_with_a_dead_volume_are_hurt() -> None:
    volumes = [volume(f"node-1:{ONE}", "a"), volume(f"node-1:{TWO}", "b"), volume(f"node-1:{ONE}", "c", "other.example.com")]
    pods = [pod("hurt", "a"), pod("well", "b"), pod("foreign", "c"), pod("new", "a", runs=False), pod("far", "a", "node-2")]
    found = victims({f"node-1:{ONE}": "its engine was started anew"}, volumes, pods)
    assert [(victim.pod.name, victim.volume.name) for victim in found] == [("hurt", "pv-a")]
