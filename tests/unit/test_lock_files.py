"""The image's packages are the tested ones, and no more than the program needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def locked(name: str) -> dict[str, str]:
    """Each package of a lock file with its version and hashes."""
    blocks = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    return {block.partition("==")[0]: re.sub(r"\s+", " ", block) for block in blocks}


def test_what_the_image_has_is_what_was_tested() -> None:
    tested, shipped = locked("requirements.lock"), locked("requirements-runtime.lock")
    assert {name: tested.get(name) for name in shipped} == shipped, "run .ci/lock.sh"


def test_the_image_has_what_the_program_needs_and_no_tools() -> None:
    shipped = locked("requirements-runtime.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[\[><=]", wanted)[0] for wanted in project["dependencies"]}
    assert needed <= shipped.keys()
    tools = {re.split(r"[\[><=]", wanted)[0] for extra in project["optional-dependencies"].values() for wanted in extra}
    assert not (tools - needed) & shipped.keys() - {"pyyaml"}, "the Kubernetes client brings PyYAML; nothing else is shared"
