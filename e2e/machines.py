"""What a cluster's machines can do beyond Kubernetes' API: start, take images, lose their store, lose a node."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Store:
    """An S3 server as pods reach it, and its keys."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str


class Machines(Protocol):
    """Verbs of a kind of cluster. Every method raises CalledProcessError, with what the program said on stderr."""

    @property
    def kubeconfig(self) -> Path: ...

    @property
    def programs(self) -> Mapping[str, str]:
        """The environment in which kubectl and helm are found and reach the cluster."""

    @property
    def store(self) -> Store: ...

    def up(self) -> None:
        """Start two nodes and the store. Nothing happens to a cluster that is up."""

    def down(self) -> None:
        """Take away what `up` made; a cluster that was up before stays."""

    def build(self, image: str, folder: Path) -> None:
        """Build a folder's Dockerfile and give the image to every node."""

    def on_node(self, node: str, *command: str) -> str:
        """Run a command in a node's namespaces, as root: its output."""

    def kill_node(self, node: str) -> None:
        """Kill everything on a node at once."""

    def start_node(self, node: str) -> None:
        """Boot a killed node."""

    def stop_store(self) -> None:
        """Connections to the store are refused from now on."""

    def start_store(self) -> None:
        """The store answers again, with what it had."""


class TestBed:
    """Any program with the verbs up, env, image build, node-exec, node-kill, node-start, s3-stop, s3-start, down."""

    __test__ = False
    kubeconfig: Path
    store: Store

    def __init__(self, program: Path) -> None:
        self._program = program
        self._started = False
        self.programs: dict[str, str] = {}

    def up(self) -> None:
        if not self._is_up():
            self._started = True
            self._run("up", "--nodes", "2")
        self.programs = self._environment()
        self.kubeconfig = Path(self.programs["KUBECONFIG"])
        self.store = Store(
            self.programs["S3_ENDPOINT"], self.programs["AWS_ACCESS_KEY_ID"], self.programs["AWS_SECRET_ACCESS_KEY"],
            self.programs["AWS_DEFAULT_REGION"],
        )  # fmt: skip

    def _is_up(self) -> bool:
        try:
            environment = self._environment()
            subprocess.run(
                ["kubectl", "get", "nodes", "--request-timeout=5s"], env=environment, check=True, capture_output=True
            )
        except (subprocess.CalledProcessError, OSError, KeyError):
            return False
        return True

    def _environment(self) -> dict[str, str]:
        """What the verb `env` exports, as a shell reads it, over our own."""
        script = f"{self._run('env')}\nenv -0"
        text = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
        return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)

    def down(self) -> None:
        if self._started:
            self._run("down")

    def build(self, image: str, folder: Path) -> None:
        self._run("image", "build", image, str(folder))

    def on_node(self, node: str, *command: str) -> str:
        return self._run("node-exec", node, *command)

    def kill_node(self, node: str) -> None:
        self._run("node-kill", node)

    def start_node(self, node: str) -> None:
        self._run("node-start", node)

    def stop_store(self) -> None:
        self._run("s3-stop")

    def start_store(self) -> None:
        self._run("s3-start")

    def _run(self, *arguments: str) -> str:
        return run(str(self._program), *arguments)


def run(*command: str, environment: Mapping[str, str] | None = None, given: str | None = None) -> str:
    """Its output. Raises CalledProcessError with a note of all that it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, input=given, check=False, env=dict(environment or os.environ)
    )
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(f"{shlex.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        raise error
    return done.stdout
