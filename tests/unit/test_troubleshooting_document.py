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
    """The texts of the code, with … for what is filled in. A node's state is filled in with what it may be."""
    found = []
    for path in (ROOT / "driver").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found + [f"node … {state.value}" for state in State]


SAID = said()


def is_said(message: str) -> bool:
    """What is fixed in the message stands, in its order, in one text of the code."""
    fixed = ".*".join(re.escape(part) for part in message.split("…"))
    pattern = re.compile(fixed, re.DOTALL)
    words = len(re.findall(r"[A-Za-z]{2,}", message))
    return words > 0 and any(pattern.search(text) for text in SAID)


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 40


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_it(message: str) -> None:
    assert is_said(message), message


def test_a_message_that_nobody_says_is_found_out() -> None:
    assert not is_said("the volume … is blue")
