"""Requests to the Kubernetes API, as far as they are the same for all objects."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from driver.controller.kube import Kube
from driver.core.errors import KubernetesUnavailable
from tests.waiting import wait_until


def test_a_request_that_failed_is_not_made_again_behind_the_callers_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further one would have its own time-outs, and callers have deadlines."""
    answers = threading.Event()
    answers.set()
    with refusing(tmp_path, monkeypatch, answers) as taken:
        with pytest.raises(KubernetesUnavailable):
            Kube("default").node_exists("node-a")
        assert len(taken) == 1


def test_a_watch_that_is_lost_is_told_once_and_one_that_is_stopped_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, answers = set(threading.enumerate()), threading.Event()
    with structlog.testing.capture_logs() as told, refusing(tmp_path, monkeypatch, answers) as taken:
        lost, stopped = Kube("default"), Kube("default")
        answers.set()
        lost.watch_nodes(lambda found: None, lambda what, node: None)
        wait_until(lambda: len(taken) >= 4)
        lost.stop()
        wait_until(lambda: threads_of_watches() <= before)
        answers.clear()
        asked = len(taken)
        stopped.watch_pods("a=b", lambda found: None, lambda what, pod: None)
        wait_until(lambda: len(taken) > asked)
        stopped.stop()
        answers.set()
        wait_until(lambda: threads_of_watches() <= before)
    assert [line["watched"] for line in told if line["event"] == "the watch was broken off"] == ["nodes"]


def threads_of_watches() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("watch-")}


@contextlib.contextmanager
def refusing(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: threading.Event) -> Iterator[list[int]]:
    """An API server, the one of $KUBECONFIG, that hangs up on everybody once it `answers`: an entry for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        path, where = folder / "kubeconfig", f"http://127.0.0.1:{server.getsockname()[1]}"
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
                    answers.wait()

        accepting = threading.Thread(target=refuse)
        accepting.start()
        try:
            yield taken
        finally:
            answers.set()
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()
