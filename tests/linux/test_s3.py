"""The whole way through an engine with real S3 servers: one that honours conditional PUTs and one that ignores them."""

from __future__ import annotations

import pytest

from driver.core.errors import AccessDenied, NotFound, Unsupported
from driver.core.sizes import MIB
from tests.engines import Engine, engine, run
from tests.oracle import fill, read_device
from tests.servers import ACCESS, SECRET, S3Server, rclone_s3, versitygw
from tests.waiting import wait_until

__all__ = ["rclone_s3", "versitygw"]


def add(made: Engine, name: str, server: S3Server, bucket: str, secret: str = SECRET) -> None:
    """Configure a bucket of the server."""
    keys = made.state / f"{name}.keys"
    keys.write_text(f"[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {secret}\n")
    made.repository(
        name, f"s3://{bucket}/some/prefix", endpoint=server.endpoint, region="us-east-1", credentials=str(keys)
    )


@pytest.mark.parametrize("kind", ["rclone_s3", "versitygw"])
def test_a_volume_goes_to_s3_and_comes_back(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(kind)
    with engine() as made:
        add(made, "bucket", server, server.make_bucket())
        device = made.volume("v", 64 * MIB)
        run("mkfs.ext4", "-q", device)
        fill(device, 40 * MIB, 8 * MIB)
        content = read_device(device, 64 * MIB)
        made.call("snapshot.create", volume="v", name="s", repository="bucket")
        fill(device, 64 * MIB)
        shown = made.wait_snapshot("bucket:s")
        assert shown["state"] == "committed", shown
        assert shown["requests"] <= 64 // 16 + 1 + 16
        job = made.call("snapshot.restore", snapshot="s", repository="bucket", volume="w")["job"]
        made.wait_job(job)
        assert read_device(made.call("volume.attach", name="w")["device"], 64 * MIB) == content
        made.wait_job(made.call("snapshot.verify", snapshot="s", repository="bucket")["job"])
        assert [s["name"] for s in made.call("snapshot.list", repository="bucket")["snapshots"]] == ["s"]
        made.call("snapshot.delete", snapshot="s", repository="bucket")
        assert made.call("snapshot.list", repository="bucket")["snapshots"] == []


def test_a_running_snapshot_is_only_deleted_where_that_is_safe(rclone_s3: S3Server, versitygw: S3Server) -> None:
    """Without conditional PUTs nothing could keep a session from committing after its deletion."""
    with engine("--upload-rate", "4Mi") as made:
        device = made.volume("v", 64 * MIB)
        fill(device, 64 * MIB)
        add(made, "safe", versitygw, versitygw.make_bucket())
        made.call("snapshot.create", volume="v", name="first", repository="safe")
        made.call("snapshot.delete", snapshot="first", repository="safe")
        listed = made.call("snapshot.list", repository="safe")["snapshots"]
        assert all(shown["state"] != "committed" for shown in listed)
        add(made, "unsafe", rclone_s3, rclone_s3.make_bucket())
        made.call("snapshot.create", volume="v", name="second", repository="unsafe")
        with pytest.raises(Unsupported, match="conditional"):
            made.call("snapshot.delete", snapshot="second", repository="unsafe")


def test_what_the_store_refuses_is_said_before_the_cut(versitygw: S3Server) -> None:
    with engine() as made:
        made.volume("v", MIB)
        add(made, "missing", versitygw, "no-such-bucket")
        add(made, "refused", versitygw, versitygw.make_bucket(), secret="wrong")
        with pytest.raises(NotFound, match="no-such-bucket"):
            made.call("snapshot.create", volume="v", repository="missing")
        with pytest.raises(AccessDenied):
            made.call("snapshot.create", volume="v", repository="refused")
        assert made.call("volume.show", name="v")["snapshot_in_progress"] is None
        assert list((made.state / "sessions").iterdir()) == []


def test_a_store_that_goes_away_is_waited_for(versitygw: S3Server) -> None:
    with engine("--upload-rate", "8Mi") as made:
        device = made.volume("v", 64 * MIB)
        fill(device, 64 * MIB)
        content = read_device(device, 64 * MIB)
        add(made, "bucket", versitygw, versitygw.make_bucket())
        made.call("snapshot.create", volume="v", name="s", repository="bucket")
        versitygw.stop()
        try:
            fill(device, 64 * MIB)
            wait_until(lambda: made.call("snapshot.show", snapshot="bucket:s")["session"]["retries"])
        finally:
            versitygw.start()
        shown = made.wait_snapshot("bucket:s")
        assert shown["state"] == "committed" and shown["session"]["retries"] > 0, shown
        made.wait_job(made.call("snapshot.restore", snapshot="bucket:s", volume="w")["job"])
        assert read_device(made.call("volume.attach", name="w")["device"], 64 * MIB) == content
