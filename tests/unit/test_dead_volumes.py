"""Which mounts lost their device, and which pods are hurt by it."""

from __future__ import annotations

from pathlib import Path

from driver.controller.revive import dead, victims
from driver.controller.seen import PodClaims, VolumeSeen
from driver.core.ids import new_id
from driver.host.mountinfo import Mount
from driver.node.conditions import health_of
from driver.node.dead import dead_targets
from driver.node.here import Here, NodeEngine
from driver.rpc.names import DEVICE_DEAD

ONE, TWO = new_id(), new_id()
DEVICES = "/var/lib/stillframe/dev"


def file_system(name: str, device: str, target: str = "") -> Mount:
    return Mount(1, 0, device, "/", target or f"/staged/{name}", "ext4", f"{DEVICES}/{name}", (), ())


def node(name: str, *, removed: bool = False) -> Mount:
    root = f"/{name}//deleted" if removed else f"/{name}"
    return Mount(1, 0, "0:99", root, f"/pods/{name}", "tmpfs", "stillframe-dev", (), ())


def test_a_file_system_is_dead_when_its_volume_has_another_device_or_none() -> None:
    mounts = [file_system("same", "7:1"), file_system("other", "7:2"), file_system("none", "7:3")]
    found = dead_targets(mounts, DEVICES, {"same": "7:1", "other": "7:9"})
    assert found == {"other": ["/staged/other"], "none": ["/staged/none"]}


def test_every_place_of_a_dead_device_is_told_and_none_of_the_new_one() -> None:
    """A pod that is being deleted has the old device, the one that was made in its place the new one."""
    mounts = [
        file_system("data", "7:1", "/pods/old/volumes/data/mount"), file_system("data", "7:2", "/staged/data"),
        file_system("data", "7:2", "/pods/new/volumes/data/mount"), file_system("data", "7:1", "/pods/older/volumes/data"),
    ]  # fmt: skip
    found = dead_targets(mounts, DEVICES, {"data": "7:2"})
    assert found == {"data": ["/pods/old/volumes/data/mount", "/pods/older/volumes/data"]}


def test_a_raw_device_is_dead_when_its_node_was_removed() -> None:
    assert dead_targets([node("raw"), node("gone", removed=True)], DEVICES, {"raw": "7:1"}) == {"gone": ["/pods/gone"]}
    assert dead_targets([node("given-up")], DEVICES, {}) == {"given-up": ["/pods/given-up"]}


def test_what_is_not_of_a_volume_is_left_alone() -> None:
    whole = Mount(1, 0, "0:99", "/", DEVICES, "tmpfs", "stillframe-dev", (), ())
    other = Mount(1, 0, "7:4", "/", "/mnt", "ext4", "/dev/loop4", (), ())
    assert dead_targets([whole, other], DEVICES, {}) == {}


def volume(handle: str, claim: str, driver: str = "csi.stillframe.io") -> VolumeSeen:
    return VolumeSeen(f"pv-{claim}", driver, handle, ("shop", claim), "uid")


def pod(name: str, claim: str, node: str = "node-1", *, is_ending: bool = False) -> PodClaims:
    return PodClaims("shop", name, node, (claim,), f"uid-{name}", is_ending, True)


def test_a_volume_s_health_names_every_place_in_one_status() -> None:
    """A reason stands once in a volume's health (CSI), also when the engine has given the device up itself."""
    here = Here("node-1", NodeEngine(Path("/nowhere"), "node-1"))
    given_up = {"kind": "inaccessible", "reason": DEVICE_DEAD, "message": "its process died again and again"}
    for conditions in ([], [given_up]):
        volume = {"name": "data", "id": ONE, "conditions": conditions}
        health = health_of(here, volume, {"data": ["/pods/uid-1/mount", "/pods/uid-2/mount"]})
        found = dead([health])[f"node-1:{ONE}"]
        assert [status.reason for status in health.health_statuses] == [DEVICE_DEAD]
        assert "/pods/uid-1/mount" in found and "/pods/uid-2/mount" in found


def test_pods_that_have_the_dead_device_are_hurt_and_no_others() -> None:
    volumes = [volume(f"node-1:{ONE}", "a"), volume(f"node-1:{TWO}", "b"), volume(f"node-1:{ONE}", "c", "other.example.com")]
    pods = [
        pod("hurt", "a"), pod("well", "b"), pod("foreign", "c"), pod("far", "a", "node-2"),
        pod("ending", "a", is_ending=True), pod("made-in-its-place", "a"),
    ]  # fmt: skip
    where = ", ".join(f"/pods/uid-{name}/mount" for name in ("ending", "hurt", "foreign", "far"))
    found = victims({f"node-1:{ONE}": f"the engine was started anew while it was mounted at {where}"}, volumes, pods)
    assert [(victim.pod.name, victim.volume.name) for victim in found] == [("hurt", "pv-a")]
