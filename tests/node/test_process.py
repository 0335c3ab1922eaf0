"""The node plugin as a process: its log, kubelet's registration, health, metrics, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from csi import csi_pb2
from csi import pluginregistration_pb2 as api
from csi import pluginregistration_pb2_grpc as services
from driver.controller import authority
from driver.core.sizes import MIB
from driver.rpc.tls import NODE_NAME
from tests.controller.test_tls import certificates, lay_out, now
from tests.engines import Engine, engine
from tests.metrics import check_served
from tests.oracle import fill
from tests.plugins import Plugin, block_capability, mount_capability, plugin
from tests.servers import free_port
from tests.waiting import wait_until


@pytest.fixture
def made() -> Iterator[Engine]:
    with engine() as running:
        yield running


def lines(one: Plugin) -> list[dict[str, Any]]:
    return [json.loads(line) for line in one.log.read_text().splitlines()]


def port_of(one: Plugin) -> int:
    return int(next(line["http"] for line in reversed(lines(one)) if line["event"] == "CSI is served"))


def fetch(one: Plugin, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port_of(one)}{path}", timeout=150) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_call_is_a_line_and_no_line_has_a_secret(made: Engine) -> None:
    with plugin(made, "--debug") as one:
        volume = one.create("logged", 16 * MIB, secrets={"key": "TOP-SECRET"})
        flags = mount_capability(flags=["nosuid", "TOP-SECRET-FLAG"])
        with pytest.raises(grpc.RpcError):
            one.stage(volume, flags)
        with pytest.raises(grpc.RpcError):
            one.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(secrets={"key": "TOP-SECRET"}))
        snapshot = one.snapshot(volume, "logged-1")
        text = one.log.read_text()
        assert "TOP-SECRET" not in text
        calls = [line for line in lines(one) if line["event"] == "call"]
        assert [(line["call"], line["code"]) for line in calls[:4]] == [
            ("CreateVolume", "OK"), ("NodeStageVolume", "INVALID_ARGUMENT"), ("DeleteVolume", "INVALID_ARGUMENT"),
            ("CreateSnapshot", "OK"),
        ]  # fmt: skip
        assert (calls[0]["name"], calls[0]["volume_id"]) == ("logged", volume)
        assert calls[1]["volume_id"] == volume
        assert (calls[3]["source_volume_id"], calls[3]["name"], calls[3]["snapshot_id"]) == (
            volume, "logged-1", snapshot.snapshot_id,
        )  # fmt: skip
        assert len({line["request"] for line in calls}) == len(calls)
        assert calls[1]["error"]
        details = [line for line in lines(one) if line["event"] == "messages"]
        assert {line["request"] for line in details} == {line["request"] for line in calls}


def test_kubelet_learns_of_the_driver(made: Engine) -> None:
    registry = made.state.parent / "plugins_registry"
    path = registry / "csi.stillframe.io-reg.sock"
    with plugin(made, "--registration", str(registry), "--kubelet-endpoint", "/var/lib/kubelet/csi.sock") as one:
        with grpc.insecure_channel(f"unix://{path}") as channel:
            kubelet: Any = services.RegistrationStub(channel)
            info = kubelet.GetInfo(api.InfoRequest(), timeout=150, wait_for_ready=True)
            assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "csi.stillframe.io", "/var/lib/kubelet/csi.sock")
            assert list(info.supported_versions) == ["1.0.0"]
            kubelet.NotifyRegistrationStatus(api.RegistrationStatus(plugin_registered=True), timeout=150)
        one.kill()
        assert path.is_socket()  # a dead plugin's, which its successor replaces
        one.start("--registration", str(registry))
        with grpc.insecure_channel(f"unix://{path}") as channel:
            again: Any = services.RegistrationStub(channel)
            served = one.endpoint.removeprefix("unix://")
            assert again.GetInfo(api.InfoRequest(), timeout=150, wait_for_ready=True).endpoint == served
            refusal = api.RegistrationStatus(plugin_registered=False, error="another driver has the name")
            again.NotifyRegistrationStatus(refusal, timeout=150)
        assert one.process is not None
        assert one.process.wait(150) != 0
        assert "another driver has the name" in one.log.read_text()
        assert not path.exists()


def test_health_is_the_process_and_readiness_the_engine(made: Engine) -> None:
    with plugin(made, "--http", "0") as one:
        channel: Any = one.channel
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert fetch(one, "/healthz") == (200, "ok\n")
        assert fetch(one, "/readyz") == (200, "ok\n")
        assert fetch(one, "/nothing")[0] == 404
        made.kill()
        assert fetch(one, "/healthz")[0] == 200
        status, text = fetch(one, "/readyz")
        assert (status, "no engine runs" in text) == (503, True)
        status, text = fetch(one, "/metrics")
        assert (status, "stillframe_engine_up 0.0" in text) == (200, True)
        made.start()
        assert fetch(one, "/readyz")[0] == 200


def test_a_node_is_ready_when_the_controller_can_call_it(made: Engine) -> None:
    folder = made.state.parent / "tls"
    folder.mkdir()
    with plugin(made, "--http", "0", "--listen", f"127.0.0.1:{free_port()}", "--tls", str(folder)) as one:
        assert fetch(one, "/readyz")[0] == 503
        assert one.identity.Probe(csi_pb2.ProbeRequest()).ready.value, "kubelet can call it"
        lay_out(folder, certificates(authority.make_authority(now()), NODE_NAME, authority.SERVER))
        wait_until(lambda: fetch(one, "/readyz") == (200, "ok\n"))


def test_an_engine_that_is_silent_is_not_ready_and_holds_no_health_check_up(made: Engine) -> None:
    service = made.call("engine.info")["pid"]
    with plugin(made, "--http", "0") as one:
        os.kill(service, signal.SIGSTOP)
        try:
            status, text = fetch(one, "/readyz")
            assert (status, "engine.info" in text) == (503, True)
            assert not one.identity.Probe(csi_pb2.ProbeRequest()).ready.value
            assert fetch(one, "/healthz")[0] == 200
        finally:
            os.kill(service, signal.SIGCONT)
        assert fetch(one, "/readyz")[0] == 200


def value(text: str, name: str, **labels: str) -> float:
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{wanted}"' in (match[1] or "") for key, wanted in labels.items()):
            return float(match[2])
    raise AssertionError(f"no {name} {labels} in\n{text}")


def test_metrics_tell_of_a_session_while_it_runs() -> None:
    with engine("--upload-rate", "4Mi") as slow, plugin(slow, "--http", "0") as one:
        volume = one.create("busy", 64 * MIB, block_capability())
        device = slow.call("volume.attach", name="busy")["device"]
        fill(device, 64 * MIB)
        one.controller.CreateSnapshot(csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="busy-1"))
        fill(device, 4 * MIB, 60 * MIB)
        _, text = fetch(one, "/metrics")
        of = {"volume": "busy", "snapshot": "busy-1"}
        states = {
            state: value(text, "stillframe_session_chunks", state=state, **of) for state in ("pending", "sealed", "stored")
        }
        assert sum(states.values()) == 1024, states
        assert states["pending"] > 0
        budget = value(text, "stillframe_session_budget_bytes", **of)
        assert 0 < value(text, "stillframe_session_buffer_bytes", **of) <= budget
        assert value(text, "stillframe_session_spill_bytes", **of) == 0
        preimages = value(text, "stillframe_session_preimages", **of)
        assert 0 < preimages <= 1024, "a chunk may be sealed before it is written"
        assert value(text, "stillframe_session_throttled_seconds", **of) == 0
        assert value(text, "stillframe_volume_preimages_total", volume="busy") == preimages
        slow.wait_snapshot("busy-1")
        _, text = fetch(one, "/metrics")
        assert "stillframe_session_chunks{" not in text
        assert value(text, "stillframe_snapshots", state="committed") == 1
        answer = one.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest()).entries[0].snapshot
        one.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=answer.snapshot_id))
        _, text = fetch(one, "/metrics")
        assert value(text, "stillframe_snapshots", state="committed") == 0


def test_metrics_tell_what_happened(made: Engine) -> None:
    with plugin(made, "--http", "0") as one:
        volume = one.create("measured", 16 * MIB, block_capability())
        device = made.call("volume.attach", name="measured")["device"]
        fill(device, 16 * MIB)
        one.snapshot(volume, "measured-1")
        _, text = fetch(one, "/metrics")
        assert value(text, "stillframe_engine_up") == 1
        assert value(text, "stillframe_volume_size_bytes", volume="measured") == 16 * MIB
        assert value(text, "stillframe_volume_attached", volume="measured") == 1
        assert value(text, "stillframe_volume_written_bytes_total", volume="measured") == 16 * MIB
        assert value(text, "stillframe_volume_write_duration_seconds_count", volume="measured") == 64
        assert value(text, "stillframe_volume_write_duration_seconds_bucket", volume="measured", le="+Inf") == 64
        assert 0 <= value(text, "stillframe_snapshot_age_seconds", volume="measured") < 600
        assert value(text, "stillframe_snapshots", state="committed") == 1
        assert value(text, "stillframe_csi_calls_total", method="CreateVolume", code="OK") == 1
        assert value(text, "stillframe_csi_call_duration_seconds_count", method="CreateVolume", code="OK") == 1
        assert "stillframe_volume_condition" in check_served(text)


def test_a_second_plugin_on_the_socket_is_refused_and_a_stop_is_clean(made: Engine) -> None:
    with plugin(made) as one:
        other = Plugin(made)
        other.start_process()
        assert other.process is not None
        assert other.process.wait(150) == 5
        assert "another plugin listens" in one.log.read_text()
        assert one.identity.Probe(csi_pb2.ProbeRequest()).ready.value
        one.stop()
        with socket.socket(socket.AF_UNIX) as gone, pytest.raises(OSError, match="No such file"):
            gone.connect(one.endpoint.removeprefix("unix://"))


def test_a_plugin_that_ends_leaves_its_successor_the_socket(made: Engine) -> None:
    """While a call of the old one is still in hand."""
    with plugin(made) as old:
        channel: Any = old.channel
        health: Any = health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        assert old.process is not None
        old.process.terminate()
        path = Path(old.endpoint.removeprefix("unix://"))
        wait_until(lambda: not path.exists())
        old.process.send_signal(signal.SIGSTOP)  # else it ends by itself after a while
        assert old.process.poll() is None, "it was too fast for this test"
        with plugin(made) as new:
            old.process.send_signal(signal.SIGCONT)
            watching.cancel()
            old.process.wait(150)
            assert path.is_socket()
            assert new.identity.Probe(csi_pb2.ProbeRequest()).ready.value
