"""Snapshots on the real kernel while the volume is written; every restored byte compared."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from driver.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, StillframeError
from driver.core.sizes import MIB, TIB
from tests.engines import Engine, engine, mounted, run
from tests.oracle import LoggedWriter, fill, read_device, state_in
from tests.waiting import wait_until

SIZE = 48 * MIB


@pytest.fixture(scope="module")
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


def snapshot_under_writes(made: Engine, volume: str, device: str, name: str, seed: int, block: int = 4096) -> None:
    """Snapshot a volume while it is written, restore it, and find the restored state among those it went through."""
    start = bytes(read_device(device, SIZE))
    with LoggedWriter(device, SIZE, seed, block) as writer:
        time.sleep(0.3)
        first = writer.acknowledged
        made.call("snapshot.create", volume=volume, name=name)
        last = writer.begun
        wait_until(lambda: writer.acknowledged > last + 10)
        shown = made.wait_snapshot(name)
    assert shown["state"] == "committed", shown
    assert shown["session"]["preimages"] > 0, "the writer did not go on during the session"
    restored = made.restore(name, f"{name}-restored")
    k = state_in(read_device(restored, SIZE), start, writer.log, first, last, block)
    assert k is not None, f"the image of {name} is no state between writes {first} and {last}"
    made.wait_job(made.call("snapshot.verify", snapshot=name)["job"])
    made.call("volume.detach", name=f"{name}-restored")
    made.call("volume.delete", name=f"{name}-restored")


@pytest.mark.parametrize("provisioning", ["thick", "thin"])
def test_a_restored_volume_is_the_volume_at_the_cut(one: Engine, provisioning: str) -> None:
    device = one.volume(f"cut-{provisioning}", SIZE, provisioning=provisioning)
    for number in range(3):
        snapshot_under_writes(one, f"cut-{provisioning}", device, f"{provisioning}-{number}", number)


def test_a_volume_of_512_byte_sectors_is_restored_as_one(one: Engine) -> None:
    device = one.volume("sectors", SIZE, logical_block_size=512)
    snapshot_under_writes(one, "sectors", device, "sectors", 7, block=512)
    run("mkfs.ext4", "-q", device)
    one.call("snapshot.create", volume="sectors", name="sectors-ext4")
    one.wait_snapshot("sectors-ext4")
    restored = one.restore("sectors-ext4", "sectors-again")
    assert run("blockdev", "--getss", restored).strip() == "512"
    with mounted(restored):
        pass


def test_the_writer_sees_no_difference_during_a_session(one: Engine) -> None:
    device = one.volume("fio", 128 * MIB)
    one.call("snapshot.create", volume="fio", name="fio-1")
    for number in range(2, 5):
        run("fio", "--name=test", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-256k",
            "--size=128m", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", f"--filename={device}", "--minimal")  # fmt: skip
        one.wait_snapshot(f"fio-{number - 1}")
        one.call("snapshot.create", volume="fio", name=f"fio-{number}")
    assert one.wait_snapshot("fio-4")["state"] == "committed"


def test_a_file_system_is_restored_consistent(one: Engine) -> None:
    device = one.volume("files", 400 * MIB)
    run("mkfs.xfs", "-q", device)
    with mounted(device) as folder:
        run("cp", "-r", "/usr/lib/python3", str(folder / "copy"))
        run("sync")
        one.call("snapshot.create", volume="files", name="files")
        run("rm", "-rf", str(folder / "copy"))
        run("fstrim", str(folder))
        one.wait_snapshot("files")
    restored = one.restore("files", "files-restored")
    with mounted(restored, "-o", "nouuid") as folder:
        run("diff", "-r", "/usr/lib/python3", str(folder / "copy"))
    run("xfs_repair", "-n", restored)


def test_several_volumes_are_snapshotted_at_once(one: Engine) -> None:
    devices = [one.volume(f"several-{number}", 16 * MIB) for number in range(3)]
    for number, device in enumerate(devices):
        fill(device, 16 * MIB)
        one.call("snapshot.create", volume=f"several-{number}", name=f"several-{number}")
    for number, device in enumerate(devices):
        assert one.wait_snapshot(f"several-{number}")["state"] == "committed"
        restored = one.restore(f"several-{number}", f"several-{number}-restored")
        assert read_device(restored, 16 * MIB) == read_device(device, 16 * MIB)


def test_a_detached_volume_can_be_snapshotted_and_attached_meanwhile(one: Engine) -> None:
    device = one.volume("detached", 16 * MIB)
    fill(device, 16 * MIB)
    content = read_device(device, 16 * MIB)
    one.call("volume.detach", name="detached")
    one.call("snapshot.create", volume="detached", name="detached")
    device = one.call("volume.attach", name="detached")["device"]
    run("dd", "if=/dev/zero", f"of={device}", "bs=1M", "count=16", "oflag=direct", "status=none")
    assert one.wait_snapshot("detached")["state"] == "committed"
    assert read_device(one.restore("detached", "detached-restored"), 16 * MIB) == content


def test_a_huge_sparse_volume_costs_what_it_holds(one: Engine) -> None:
    device = one.volume("sparse", 2 * TIB, provisioning="thin")
    fill(device, 3 * MIB, TIB)
    one.call("snapshot.create", volume="sparse", name="sparse")
    shown = one.wait_snapshot("sparse")
    assert shown["state"] == "committed"
    assert shown["stored_bytes"] <= 4 * MIB and shown["requests"] < 20
    restored = one.restore("sparse", "sparse-restored", provisioning="thin")
    run("cmp", "-n", str(8 * MIB), "-i", str(TIB - 2 * MIB), device, restored)
    assert one.call("volume.show", name="sparse-restored")["allocated_bytes"] < 8 * MIB


def test_a_grown_volume_is_restored_larger(one: Engine) -> None:
    device = one.volume("larger", 16 * MIB)
    fill(device, 16 * MIB)
    one.call("snapshot.create", volume="larger", name="larger")
    one.call("volume.grow", name="larger", size_bytes=32 * MIB)
    fill(device, 16 * MIB, 16 * MIB)
    assert one.wait_snapshot("larger")["size_bytes"] == 16 * MIB
    restored = one.restore("larger", "larger-restored", size_bytes=64 * MIB)
    assert int(run("blockdev", "--getsize64", restored)) == 64 * MIB
    assert read_device(restored, 16 * MIB) == read_device(device, 16 * MIB)
    with pytest.raises(InvalidArgument):
        one.call("snapshot.restore", snapshot="larger", volume="smaller", size_bytes=8 * MIB)


def test_names_and_states_are_kept_apart(one: Engine) -> None:
    one.volume("names", MIB)
    one.volume("names-2", MIB)
    made = one.call("snapshot.create", volume="names", name="names-snapshot")
    assert one.call("snapshot.create", volume="names", name="names-snapshot")["id"] == made["id"]
    with pytest.raises(AlreadyExists):
        one.call("snapshot.create", volume="names-2", name="names-snapshot")
    one.wait_snapshot("names-snapshot")
    for form in ("names-snapshot", made["id"], made["handle"]):
        assert one.call("snapshot.show", snapshot=form)["state"] == "committed"
    with pytest.raises(NotFound):
        one.call("snapshot.show", snapshot="nothing")
    with pytest.raises(NotFound):
        one.call("snapshot.create", volume="names", name="x", repository="nowhere")
    with pytest.raises(NotFound):
        one.call("snapshot.create", volume="nothing", name="x")
    one.call("snapshot.delete", snapshot="names-snapshot")
    with pytest.raises(StillframeError):
        one.call("snapshot.restore", snapshot="names-snapshot", volume="names-3")


def test_one_session_a_volume_and_a_running_one_can_be_deleted() -> None:
    with engine("--upload-rate", "2Mi") as made:
        device = made.volume("busy", 64 * MIB)
        fill(device, 64 * MIB)
        made.call("snapshot.create", volume="busy", name="first")
        with pytest.raises(FailedPrecondition, match="first"):
            made.call("snapshot.create", volume="busy", name="second")
        with pytest.raises(FailedPrecondition):
            made.call("volume.detach", name="busy") and made.call("volume.delete", name="busy")
        made.call("snapshot.delete", snapshot="first")
        assert all(shown["state"] != "committed" for shown in made.call("snapshot.list")["snapshots"])
        assert made.call("volume.show", name="busy")["snapshot_in_progress"] is None


def test_deleting_an_older_snapshot_leaves_the_running_one_alone() -> None:
    with engine("--upload-rate", "6Mi") as made:
        device = made.volume("v", 64 * MIB)
        made.call("snapshot.create", volume="v", name="old")
        made.wait_snapshot("old")
        fill(device, 64 * MIB)
        running = made.call("snapshot.create", volume="v", name="new")["id"]
        made.call("snapshot.delete", snapshot="old")
        assert made.call("volume.show", name="v")["snapshot_in_progress"] == running
        with pytest.raises(FailedPrecondition, match="new"):
            made.call("snapshot.create", volume="v", name="newer")
        assert made.wait_snapshot("new")["state"] == "committed"


def test_a_full_buffer_fails_the_snapshot_and_never_the_volume() -> None:
    with engine("--session-memory", "32Mi", "--spill", "1Mi", "--upload-rate", "256Ki") as made:
        device = made.volume("full", 128 * MIB)
        fill(device, 128 * MIB)
        made.call("snapshot.create", volume="full", name="full", on_buffer_full="fail")
        run("fio", "--name=test", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite", "--bs=4k",
            "--size=128m", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", f"--filename={device}", "--minimal")  # fmt: skip
        shown = made.wait_snapshot("full")
        assert shown["state"] == "failed"
        assert "outgrew" in shown["error"]["message"]
        assert shown["session"]["buffer_peak_bytes"] <= 32 * MIB
        made.call("snapshot.create", volume="full", name="small", on_buffer_full="fail")


def test_a_spilled_session_is_exact() -> None:
    with engine("--session-memory", "32Mi", "--spill", "256Mi", "--upload-rate", "6Mi") as made:
        device = made.volume("spill", 96 * MIB)
        fill(device, 96 * MIB)
        content = read_device(device, 96 * MIB)
        made.call("snapshot.create", volume="spill", name="spill")
        fill(device, 96 * MIB)
        shown = made.wait_snapshot("spill")
        assert shown["state"] == "committed", shown
        assert shown["session"]["throttled"] > 0
        assert read_device(made.restore("spill", "spill-restored"), 96 * MIB) == content


def test_the_node_cap_refuses_a_session_too_many() -> None:
    with engine("--node-memory", "48Mi", "--session-memory", "48Mi", "--upload-rate", "1Mi") as made:
        for name in ("a", "b"):
            device = made.volume(name, 32 * MIB)
            fill(device, 32 * MIB)
        made.call("snapshot.create", volume="a", name="a")
        with pytest.raises(FailedPrecondition, match="running snapshots hold"):
            made.call("snapshot.create", volume="b", name="b")


def test_sessions_share_the_node_cap_fairly() -> None:
    """The first has all it can use, until there is a second; what the second leaves is the first's again."""
    with engine("--node-memory", "128Mi", "--session-memory", "96Mi", "--upload-rate", "2Mi") as made:

        def budget(name: str) -> int:
            return int(made.call("snapshot.show", snapshot=name)["session"]["budget_bytes"])

        for name in ("a", "b"):
            device = made.volume(name, 96 * MIB)
            fill(device, 96 * MIB)
        made.call("snapshot.create", volume="a", name="a")
        wait_until(lambda: 95 * MIB <= budget("a") <= 96 * MIB)
        made.call("snapshot.create", volume="b", name="b")
        wait_until(lambda: all(63 * MIB <= budget(name) <= 64 * MIB for name in "ab"))
        made.call("snapshot.delete", snapshot="b")
        wait_until(lambda: 95 * MIB <= budget("a") <= 96 * MIB)
        made.call("snapshot.delete", snapshot="a")


