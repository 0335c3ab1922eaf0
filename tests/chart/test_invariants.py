"""What must hold of the chart's manifests, with defaults and with every option."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from driver import __version__
from driver.cli.main import cli
from driver.core.settings import repositories
from driver.engine.vigil import LOOK_SECONDS, SILENT_LOOKS
from driver.rpc import parameters
from tests.chart.rendered import (
    CHART,
    EVERYTHING,
    REPOSITORY,
    ROOT,
    Manifest,
    containers,
    of_kind,
    one,
    pod_templates,
    run,
    template,
)

VALUES: dict[str, Manifest] = {"defaults": {}, "everything": EVERYTHING}


@pytest.fixture(scope="module", params=VALUES, name="manifests")
def fixture_manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return template(VALUES[request.param])


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_lint_finds_nothing(values: Manifest) -> None:
    done = run("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout


def test_the_chart_is_of_the_drivers_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()


def test_no_two_objects_have_one_name(manifests: list[Manifest]) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(names) == len(set(names))


def test_images_are_pinned_and_probes_are_where_they_belong(manifests: list[Manifest]) -> None:
    for name, pod in pod_templates(manifests):
        for container in containers(pod):
            assert re.search(r":[^:/]+$|@sha256:", container["image"]), (name, container["image"])
            assert not container["image"].endswith(":latest")
            assert container["resources"]["requests"]["memory"], (name, container["name"])
    for name in ("stillframe-node", "stillframe-controller"):
        container = dict(pod_templates(manifests))[name]["spec"]["containers"][0]
        assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys()


def test_every_argument_is_one_that_the_command_has(manifests: list[Manifest]) -> None:
    seen = set()
    for name, pod in pod_templates(manifests):
        for container in containers(pod):
            words = [word for word in container["args"] if not word.startswith("--")]
            if "sig-storage" in container["image"] or words[0] not in cli.commands:
                continue
            seen.add(" ".join(words))
            said = CliRunner().invoke(cli, [*words, "--help"])
            assert said.exit_code == 0, (name, words)
            of_all = CliRunner().invoke(cli, ["--help"]).output
            for option in (word for word in container["args"] if word.startswith("--")):
                before = container["args"].index(option) < container["args"].index(words[0])
                known = of_all if before else said.output
                assert re.search(rf"^\s+{option.partition('=')[0]}\b", known, re.M), (name, option)
    assert {"engine run", "engine transfer", "node", "controller", "uninstall-check"} <= seen


def test_the_engine_is_replaced_by_hand_only_and_nothing_kills_it(manifests: list[Manifest]) -> None:
    engine = one(manifests, "DaemonSet", "stillframe-engine")
    assert engine["spec"]["updateStrategy"] == {"type": "OnDelete"}
    pod = engine["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "system-node-critical"
    (keeper,) = pod["containers"]
    assert "livenessProbe" not in keeper and "memory" not in keeper["resources"].get("limits", {})
    assert keeper["securityContext"]["privileged"] is True
    (state,) = [mount for mount in keeper["volumeMounts"] if mount["name"] == "state"]
    assert state["mountPropagation"] == "Bidirectional"
    grace = next(word for word in keeper["args"] if word.startswith("--grace="))
    assert pod["terminationGracePeriodSeconds"] > float(grace.partition("=")[2])


def test_what_checks_file_systems_has_no_memory_limit(manifests: list[Manifest]) -> None:
    (plugin,) = one(manifests, "DaemonSet", "stillframe-node")["spec"]["template"]["spec"]["containers"]
    assert "memory" not in plugin["resources"].get("limits", {})


def test_uploads_have_a_container_of_their_own_with_a_limit_and_no_privilege(manifests: list[Manifest]) -> None:
    pod = one(manifests, "DaemonSet", "stillframe-engine")["spec"]["template"]["spec"]
    (transfer,) = pod["initContainers"]
    assert transfer["restartPolicy"] == "Always"
    assert transfer["args"] == ["engine", "transfer"] and "--without-transfer" in pod["containers"][0]["args"]
    assert transfer["resources"]["limits"]["memory"]
    assert transfer["livenessProbe"]["exec"]["command"] == ["stillframe", *transfer["args"], "--check"]
    assert transfer["livenessProbe"]["timeoutSeconds"] > SILENT_LOOKS * LOOK_SECONDS
    context = transfer["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]} and not context["allowPrivilegeEscalation"]


def test_only_the_transfer_and_the_controller_see_credentials(manifests: list[Manifest]) -> None:
    for name, pod in pod_templates(manifests):
        secret = {
            volume["name"] for volume in pod["spec"].get("volumes", ())
            if "secret" in volume or any("secret" in source for source in volume.get("projected", {}).get("sources", ()))
        }  # fmt: skip
        for container in containers(pod):
            if (secret - {"tls"}) & {mount["name"] for mount in container.get("volumeMounts", ())}:
                assert container["name"] in ("transfer", "controller"), (name, container["name"])
    assert "quiet" not in str([m for m in manifests if m["kind"] != "Secret"])


def test_the_controller_and_the_guard_run_as_nobody_with_nothing(manifests: list[Manifest]) -> None:
    for name in ("stillframe-controller", "stillframe-uninstall"):
        pod = dict(pod_templates(manifests))[name]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPath" in volume for volume in pod.get("volumes", ()))


def test_mount_paths_are_kubelets_and_the_engines_own(manifests: list[Manifest]) -> None:
    """kubelet names paths in its calls, and mounts name devices: both must be the host's."""
    pod = one(manifests, "DaemonSet", "stillframe-node")["spec"]["template"]["spec"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    (plugin,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in plugin["volumeMounts"]}
    for name, propagation in (("kubelet", "Bidirectional"), ("state", "HostToContainer")):
        assert mounts[name]["mountPath"] == paths[name] and mounts[name]["mountPropagation"] == propagation
    assert f"--kubelet-endpoint={paths['plugin']}/csi.sock" in plugin["args"]
    assert paths["plugin"] == f"{paths['kubelet']}/plugins/csi.stillframe.io"


def test_selectors_select_the_pods_that_they_mean(manifests: list[Manifest]) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pod_templates(manifests)}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector", {})).get("matchLabels")
        if selector and manifest["kind"] != "PodMonitor":
            chosen = [name for name, has in labels.items() if selector.items() <= has.items()]
            assert chosen == [manifest["metadata"]["name"]]


def test_spread_constraints_are_about_the_replicas() -> None:
    pod = one(template(EVERYTHING), "Deployment", "stillframe-controller")["spec"]["template"]
    (constraint,) = pod["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "zone"
    assert constraint["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_every_right_is_listed_here_with_who_needs_it(manifests: list[Manifest]) -> None:
    """A right that is added without a reason fails, and one whose reason is gone."""
    needed = {
        "persistentvolumes": "provisioner resizer guard", "persistentvolumeclaims": "provisioner resizer controller",
        "persistentvolumeclaims/status": "resizer", "storageclasses": "provisioner", "csinodes": "provisioner",
        "nodes": "provisioner", "events": "all", "leases": "all", "csistoragecapacities": "provisioner",
        "pods": "provisioner guard", "replicasets": "provisioner", "volumesnapshots": "provisioner",
        "volumesnapshotclasses": "snapshotter", "volumesnapshotcontents": "snapshotter provisioner controller",
        "volumesnapshotcontents/status": "snapshotter", "configmaps": "controller",
    }  # fmt: skip
    if of_kind(manifests, "VolumeGroupSnapshotClass"):
        groups = ("volumegroupsnapshotclasses", "volumegroupsnapshotcontents", "volumegroupsnapshotcontents/status")
        needed |= dict.fromkeys(groups, "snapshotter")
    if EVERYTHING["tls"]["controllerSecret"] not in str(manifests):
        needed["secrets"] = "controller"
    given = set()
    for manifest in of_kind(manifests, "ClusterRole") + of_kind(manifests, "Role"):
        for rule in manifest["rules"]:
            given |= set(rule["resources"])
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert "secrets" not in rule["resources"] or rule.get("resourceNames") or rule["verbs"] == ["create"]
    assert given == needed.keys()
    bound = {(b["roleRef"]["kind"], b["roleRef"]["name"]) for b in manifests if b["kind"].endswith("RoleBinding")}
    assert bound == {(r["kind"], r["metadata"]["name"]) for r in manifests if r["kind"] in ("Role", "ClusterRole")}
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    assert accounts == {pod["spec"]["serviceAccountName"] for _, pod in pod_templates(manifests)}


def test_controller_and_nodes_meet(manifests: list[Manifest]) -> None:
    """The same port and labels on both sides, and secrets that are of the two only."""
    controller = dict(pod_templates(manifests))["stillframe-controller"]["spec"]
    node = dict(pod_templates(manifests))["stillframe-node"]
    said = dict(word.removeprefix("--").partition("=")[::2] for word in controller["containers"][0]["args"])
    labels = dict(pair.split("=") for pair in said["selector"].split(","))
    assert labels.items() <= node["metadata"]["labels"].items()
    for name, pod in pod_templates(manifests):
        assert name == "stillframe-node" or not labels.items() <= pod["metadata"]["labels"].items()
    (plugin,) = node["spec"]["containers"]
    assert f"--listen=:{said['node-port']}" in plugin["args"] and "--tls=/etc/stillframe/tls" in plugin["args"]
    assert {"name": "csi", "containerPort": int(said["node-port"])} in plugin["ports"]
    (secret,) = [volume["secret"] for volume in node["spec"]["volumes"] if volume["name"] == "tls"]
    assert secret["optional"] is True
    if "tls-secret" in said:
        assert secret["secretName"] == f"{said['tls-secret']}-node"
        may = [rule for role in of_kind(manifests, "Role") for rule in role["rules"] if rule["resources"] == ["secrets"]]
        assert [rule.get("resourceNames") for rule in may] == [
            None, [f"{said['tls-secret']}-controller", f"{said['tls-secret']}-node"],
        ]  # fmt: skip
    else:
        assert secret["secretName"] == EVERYTHING["tls"]["nodeSecret"]
    rendered = [secret["metadata"]["name"] for secret in of_kind(manifests, "Secret")]
    assert not [name for name in rendered if "tls" in name], "Helm would make another one at each render"


def test_tokens_are_only_where_the_api_is_spoken_to(manifests: list[Manifest]) -> None:
    with_token = {name for name, pod in pod_templates(manifests) if pod["spec"]["automountServiceAccountToken"]}
    assert with_token == {"stillframe-controller", "stillframe-uninstall"}


def test_the_driver_object(manifests: list[Manifest]) -> None:
    assert one(manifests, "CSIDriver", "csi.stillframe.io")["spec"] == {
        "attachRequired": False, "podInfoOnMount": False, "fsGroupPolicy": "File", "storageCapacity": True,
        "preventPodSchedulingIfMissing": True, "volumeLifecycleModes": ["Persistent"],
    }  # fmt: skip


def test_an_older_api_server_does_not_get_fields_that_it_does_not_know() -> None:
    driver = one(template({}, kubernetes="1.35.4"), "CSIDriver", "csi.stillframe.io")
    assert "preventPodSchedulingIfMissing" not in driver["spec"]


def test_sidecars_have_the_flags_that_the_driver_relies_on(manifests: list[Manifest]) -> None:
    pod = one(manifests, "Deployment", "stillframe-controller")["spec"]["template"]["spec"]
    flags = {container["name"]: set(container["args"]) for container in pod["containers"]}
    for name in ("provisioner", "snapshotter", "resizer"):
        assert {"--leader-election", "--leader-election-namespace=storage", "--retry-interval-max=15s"} <= flags[name]
    assert flags["provisioner"] >= {
        "--strict-topology", "--immediate-topology=false", "--enable-capacity", "--capacity-ownerref-level=2",
        "--extra-create-metadata", "--default-fstype=ext4",
    }  # fmt: skip
    assert "--resync-period=1m" in flags["snapshotter"], "members of a group snapshot would be ready only 15 minutes later"
    grouped = bool(of_kind(manifests, "VolumeGroupSnapshotClass"))
    assert ("--feature-gates=CSIVolumeGroupSnapshot=true" in flags["snapshotter"]) == grouped


def test_classes_hold_only_what_the_driver_takes(manifests: list[Manifest]) -> None:
    for manifest in of_kind(manifests, "StorageClass"):
        parameters.of_volume(manifest["parameters"])
    for kind in ("VolumeSnapshotClass", "VolumeGroupSnapshotClass"):
        for manifest in of_kind(manifests, kind):
            parameters.of_snapshot(manifest["parameters"])


def test_repositories_are_what_the_driver_reads(tmp_path: Path) -> None:
    manifests = template(EVERYTHING)
    data = one(manifests, "ConfigMap", "stillframe-repositories")["data"]
    (tmp_path / "repositories.toml").write_text(data["repositories.toml"])
    found = {repository.name: repository for repository in repositories(tmp_path)}
    assert found["main"].url == "s3://bucket-b/cluster/one" and found["main"].default
    assert found["main"].endpoint == REPOSITORY["endpoint"] and found["main"].region == REPOSITORY["region"]
    assert found["by-role"].credentials is None and found["second"].endpoint is None
    pod = one(manifests, "DaemonSet", "stillframe-engine")["spec"]["template"]["spec"]
    (projected,) = [volume["projected"] for volume in pod["volumes"] if "projected" in volume]
    files = set(data)
    for source in projected["sources"]:
        for item in source.get("secret", {}).get("items", ()):
            assert source["secret"]["optional"], "a missing secret must not keep the engine from starting"
            files.add(item["path"])
    for repository in found.values():
        for path in (repository.ca, repository.credentials):
            assert path is None or path.removeprefix("/etc/stillframe/") in files
    secret = one(manifests, "Secret", "stillframe-second-credentials")["stringData"]["credentials"]
    assert "aws_access_key_id = AKIA\naws_secret_access_key = quiet\n" in secret


def test_text_in_values_cannot_break_out_of_the_repositories_file() -> None:
    given = {"main": {**REPOSITORY, "region": 'x"\n[repositories.evil]\nurl="'}}
    data = one(template({"repositories": given}), "ConfigMap", "stillframe-repositories")["data"]
    assert list(tomllib.loads(data["repositories.toml"])["repositories"]) == ["main"]


def test_alerts_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    manifests = template(EVERYTHING)
    source = "".join(path.read_text() for path in (ROOT / "driver").rglob("*.py"))
    known = set(re.findall(r'"(stillframe_[a-z_]+)"', source))
    known |= {re.sub(r"\{side\}", side, name) for side in ("read", "write")
              for name in re.findall(r'"(stillframe_volume_\{side\}[a-z_]+)"', source)}  # fmt: skip
    asked: list[str] = []
    for group in one(manifests, "PrometheusRule", "stillframe")["spec"]["groups"]:
        for rule in group["rules"]:
            asked.append(rule["expr"])
            assert rule["annotations"]["summary"] and rule["annotations"]["action"]
            assert "storage" in rule["annotations"]["action"] or "kubectl -n" not in rule["annotations"]["action"]
    dashboard: Any = yaml.safe_load(one(manifests, "ConfigMap", "stillframe-dashboard")["data"]["stillframe.json"])
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for name in re.findall(r"stillframe_[a-z_]+", " ".join(asked)):
        assert re.sub(r"_(total|bucket|count|sum)$", "", name) in known or name in known, name


def test_what_is_switched_off_is_not_there() -> None:
    off: Manifest = {
        "snapshots": {"enabled": False}, "networkPolicy": {"enabled": False}, "uninstallGuard": {"enabled": False},
        "controller": {"podDisruptionBudget": {"enabled": False}},
    }  # fmt: skip
    kinds = {manifest["kind"] for manifest in template(off)}
    assert not kinds & {"VolumeSnapshotClass", "NetworkPolicy", "PodDisruptionBudget", "Job", "PodMonitor", "PrometheusRule"}
    names = [container["name"] for _, pod in pod_templates(template(off)) for container in containers(pod)]
    assert "snapshotter" not in names
