"""manifests/stillframe.yaml, for clusters without Helm: the chart's defaults, and nothing else."""

from __future__ import annotations

import os
import subprocess

import yaml

from tests.chart.rendered import CHART, ROOT, helm, one, template

FILE = ROOT / "manifests/stillframe.yaml"


def test_it_is_what_the_chart_renders_now() -> None:
    made = subprocess.run(
        ["bash", str(ROOT / ".ci/manifests.sh")], env={**os.environ, "HELM": helm()}, capture_output=True, text=True,
        check=True, timeout=300,
    )  # fmt: skip
    assert made.stdout == FILE.read_text(), "run `make manifests`, and commit what it makes"


def test_it_holds_its_namespace_and_no_secret() -> None:
    manifests = list(yaml.safe_load_all(FILE.read_text()))
    kinds = [manifest["kind"] for manifest in manifests]
    assert "Secret" not in kinds and "Job" not in kinds
    (namespace,) = [manifest for manifest in manifests if manifest["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    for manifest in manifests:
        assert manifest["metadata"].get("namespace", "stillframe") == namespace["metadata"]["name"]


def test_the_oldest_kubernetes_that_the_chart_takes_knows_every_field() -> None:
    """kubectl refuses an object with a field that its API server does not know, and applies the others."""
    oldest = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"].removeprefix(">=").removesuffix("-0")
    manifests = list(yaml.safe_load_all(FILE.read_text()))
    driver = one(manifests, "CSIDriver", "csi.stillframe.io")
    assert driver["spec"] == one(template({}, kubernetes=oldest), "CSIDriver", "csi.stillframe.io")["spec"]
    assert "preventPodSchedulingIfMissing" not in driver["spec"], "it came with Kubernetes 1.36"
