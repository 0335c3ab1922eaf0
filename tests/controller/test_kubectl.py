"""`kubectl stillframe` against a real API: volumes, snapshots with their progress, the doctor; with few rights too."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from driver.cli.doctor import HAS_PROBLEMS
from tests.apiserver import NAMESPACE, SNAPSHOTS
from tests.clusters import Cluster
from tests.controller.test_herald import begun, herald

Ran = subprocess.CompletedProcess[str]


def command(of: Cluster, *arguments: str, user: str = "admin") -> list[str]:
    kubeconfig = str(of.api.kubeconfig(user))
    return ["env", f"KUBECONFIG={kubeconfig}", sys.executable, "-m", "driver.cli.kubectl", *arguments]


def kubectl(of: Cluster, *arguments: str, user: str = "admin") -> Ran:
    done = subprocess.run(command(of, *arguments, user=user), capture_output=True, text=True, timeout=150, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_volumes_and_snapshots_are_shown_as_they_go_on(one: Cluster) -> None:
    teller = herald(one, one.replica("one"))
    begun(one, "data", "monday")
    teller.turn()  # at once: that it goes on is what is told
    assert "data\tpvc-" in kubectl(one, "-n", NAMESPACE, "volumes").stdout
    shown = json.loads(kubectl(one, "-A", "-o", "json", "volumes").stdout)["volumes"]
    assert [(row["namespace"], row["claim"], row["node"], row["size"]) for row in shown] == [
        (NAMESPACE, "data", "node-a", "1Gi")
    ]  # fmt: skip
    watching = subprocess.Popen(
        command(one, "-n", NAMESPACE, "snapshots", "monday", "--watch"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("NAMESPACE\tNAME\t")
        row = watching.stdout.readline()
        assert "\tmonday\tdata\tuploading\t" in row and " %\t" in row and row.endswith(" left\n"), row
        status = {"status": {"readyToUse": True, "restoreSize": "64Mi"}}
        one.api.custom.patch_namespaced_custom_object_status(
            SNAPSHOTS, "v1", NAMESPACE, "volumesnapshots", "monday", status
        )
        rest = watching.stdout.read().splitlines()
    except BaseException:
        watching.kill()
        raise
    finally:
        watching.wait(150)
    assert watching.returncode == 0 and "\tready\t-\t64Mi\t" in rest[-1], rest
    absent = kubectl(one, "-n", NAMESPACE, "snapshots", "tuesday")
    assert absent.returncode == 3 and "there is no VolumeSnapshot 'tuesday'" in absent.stderr


def checks(done: Ran) -> dict[str, Any]:
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


def test_the_doctor_says_what_a_cluster_lacks(one: Cluster) -> None:
    done = kubectl(one, "-o", "json", "doctor")
    found = checks(done)
    assert done.returncode == HAS_PROBLEMS
    assert found["Kubernetes"]["grade"] == found["snapshot CRDs"]["grade"] == "ok"
    assert found["CSIDriver"]["grade"] == "problem" and "helm install" in found["CSIDriver"]["fix"]
    assert found["engine"]["grade"] == "problem" and found["snapshot controller"]["grade"] == "warning"
    assert "csi.stillframe.io" in found["node node-a"]["found"]


def test_who_may_not_look_is_told_so(one: Cluster) -> None:
    """The controller's own rights: it may not read Deployments, nor the objects of the snapshot API but contents."""
    found = checks(kubectl(one, "-o", "json", "doctor", user="controller"))
    assert found["not looked at"]["grade"] == "warning" and "403" in found["not looked at"]["found"]
    refused = kubectl(one, "-n", NAMESPACE, "snapshots", user="controller")
    assert refused.returncode == 19 and "403" in refused.stderr and "hint: " in refused.stderr
    listed = kubectl(one, "-n", NAMESPACE, "volumes", user="controller")
    assert listed.returncode == 0, "volumes need no more than the right to list PersistentVolumes"
