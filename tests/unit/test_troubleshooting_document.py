"""docs/troubleshooting.md: every message that it explains is one that the code can say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from driver.controller.cluster import State

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)


def said() -> list[str]:
    """The texts of the code but its docstrings, with … for what is filled in. A node's state is filled in with what it may
    be."""
    found = []
    for path in (ROOT / "driver").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        silent: set[ast.expr] = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
                silent.update(node.values)
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
                found.append(node.value)
    return found + [f"node … {state.value}" for state in State]


SAID = said()


def is_said(message: str) -> bool:
    """It is a text of the code; or, if three words of it are fixed, they stand in their order in one."""
    fixed = ".*".join(re.escape(part) for part in message.split("…"))
    is_telling = len(re.findall(r"[A-Za-z]{2,}", message)) >= 3
    pattern = re.compile(fixed, re.DOTALL)
    return message in SAID or (is_telling and any(pattern.search(text) for text in SAID))


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 40


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_it(message: str) -> None:
    assert is_said(message), message


@pytest.mark.parametrize(
    "message",
    ["the volume … is blue", "cannot … at …", "Nothing happens if it is gone"],
    ids=["said nowhere", "too short to tell", "said to readers of the code only"],
)
def test_a_message_that_nobody_says_is_found_out(message: str) -> None:
    assert not is_said(message)
