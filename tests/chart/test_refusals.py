"""Values that the chart refuses, each by its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.rendered import REPOSITORY, refusal


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"contoller": {}}, "contoller"),
        ({"controller": {"replica": 2}}, "replica"),
        ({"engine": {"sesionMemory": "1Gi"}}, "sesionMemory"),
        ({"engine": {"updateStrategy": {}}}, "updateStrategy"),
        ({"engine": {"sessionMemory": "lots"}}, "/engine/sessionMemory"),
        ({"engine": {"processes": 9}}, "/engine/processes"),
        ({"engine": {"resources": {"limits": {"memory": "1Gi"}}}}, "memory"),
        ({"engine": {"affinity": {"nodeAfinity": {}}}}, "nodeAfinity"),
        ({"engine": {"tolerations": [{"operator": "Exist"}]}}, "/engine/tolerations/0/operator"),
        ({"garbageCollection": {"interval": "daily"}}, "/garbageCollection/interval"),
        ({"garbageCollection": {"every": "1h"}}, "every"),
        ({"node": {"resources": {"limit": {}}}}, "limit"),
        ({"node": {"maxUnavailable": "many"}}, "/node/maxUnavailable"),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"image": {"digest": "sha256:1"}}, "/image/digest"),
        ({"sidecars": {"resizer": {"image": "registry.example.com/resizer"}}}, "/sidecars/resizer/image"),
        ({"sidecars": {"resizer": {"image": "registry.example.com/resizer:latest"}}}, "/sidecars/resizer/image"),
        ({"sidecars": {"attacher": {"image": "a:1"}}}, "attacher"),
        ({"stateFolder": "var/lib"}, "/stateFolder"),
        ({"stateFolder": "/" + "x" * 64}, "/stateFolder"),
        ({"kubeletFolder": "/"}, "/kubeletFolder"),
        ({"repositories": {"Main_1": REPOSITORY}}, "Main_1"),
        ({"repositories": {"main": {"prefix": "p"}}}, "bucket"),
        ({"repositories": {"main": {**REPOSITORY, "buket": "b"}}}, "buket"),
        ({"repositories": {"main": {**REPOSITORY, "endpoint": "s3.example.com"}}}, "/repositories/main/endpoint"),
        ({"repositories": {"main": {**REPOSITORY, "prefix": "/p"}}}, "/repositories/main/prefix"),
        ({"repositories": {"main": {**REPOSITORY, "caBundle": "/etc/ca.crt"}}}, "/repositories/main/caBundle"),
        ({"repositories": {"main": {"bucket": "bb", "accessKeyId": "a"}}}, "secretAccessKey"),
        ({"repositories": {"main": {"bucket": "bb", "secretAccessKey": "a"}}}, "accessKeyId"),
        (
            {"repositories": {"main": {**REPOSITORY, "accessKeyId": "a", "secretAccessKey": "b"}}},
            'repository "main" has both existingSecret and accessKeyId',
        ),
        (
            {"repositories": {"one": {**REPOSITORY, "default": True}, "two": {**REPOSITORY, "default": True}}},
            "more than one repository is the default: one, two",
        ),
        ({"storageClasses": [{"name": "a", "fsType": "btrfs"}]}, "/storageClasses/0/fsType"),
        ({"storageClasses": [{"name": "a", "provisoning": "thin"}]}, "provisoning"),
        ({"storageClasses": [{"name": "a", "logicalBlockSize": 1024}]}, "/storageClasses/0/logicalBlockSize"),
        ({"storageClasses": [{"name": "a"}, {"name": "a"}]}, 'storageClasses has "a" twice'),
        (
            {"storageClasses": [{"name": "a", "default": True}, {"name": "b", "default": True}]},
            "storageClasses has more than one default: a, b",
        ),
        (
            {"repositories": {"main": REPOSITORY}, "volumeSnapshotClasses": [{"name": "s", "repository": "mian"}]},
            'volumeSnapshotClass "s" names the repository "mian", which is not in the values (repositories: main)',
        ),
        (
            {"groupSnapshots": {"enabled": True}, "volumeGroupSnapshotClasses": [{"name": "g", "repository": "r"}]},
            'volumeGroupSnapshotClass "g" names the repository "r", which is not in the values (repositories: none)',
        ),
        ({"volumeSnapshotClasses": [{"name": "s", "onBufferFull": "wait"}]}, "/volumeSnapshotClasses/0/onBufferFull"),
        ({"tls": {"nodeSecret": "n"}}, "tls.controllerSecret and tls.nodeSecret belong together"),
        ({"monitoring": {"serviceMonitor": {"enabled": True}}}, "serviceMonitor"),
    ],
    ids=lambda given: None if isinstance(given, str) else "-".join(given),
)
def test_a_bad_value_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    assert said in refusal(values)
