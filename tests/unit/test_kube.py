"""Requests to the Kubernetes API, as far as they are the same for all objects."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from driver.controller.kube import Kube
from driver.core.errors import KubernetesUnavailable


def test_a_request_that_failed_is_not_made_again_behind_the_callers_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further one would have its own time-outs, and callers have deadlines."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        path, where = tmp_path / "kubeconfig", f"http://127.0.0.1:{server.getsockname()[1]}"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test", "users": [{"name": "user", "user": {}}],
            "clusters": [{"name": "test", "cluster": {"server": where}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        }))  # fmt: skip
        monkeypatch.setenv("KUBECONFIG", str(path))
        taken: list[int] = []

        def refuse() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    taken.append(1)

        accepting = threading.Thread(target=refuse)
        accepting.start()
        with pytest.raises(KubernetesUnavailable):
            Kube("default").node_exists("node-a")
        server.shutdown(socket.SHUT_RDWR)
        accepting.join()
    assert len(taken) == 1
