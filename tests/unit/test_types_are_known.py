"""msgspec learns a type when it is first used; two threads that are the first at once crash the process (msgspec 0.22)."""

from __future__ import annotations

import contextlib
import sys
from types import FrameType
from typing import Any

import msgspec
import pytest

from driver.core.errors import InvalidArgument
from driver.transfer import records, specs

SPECS: list[Any] = [value for value in vars(specs).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)]


def learned(use: Any) -> list[str]:
    """What msgspec learns of types while they are used."""
    found: list[str] = []

    def on_call(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name == "get_class_annotations":
            found.append(str(frame.f_locals.get("obj")))

    sys.setprofile(on_call)
    try:
        with contextlib.suppress(InvalidArgument, msgspec.ValidationError):
            use()
    finally:
        sys.setprofile(None)
    return found


def test_a_type_is_learned_at_its_first_use() -> None:
    class New(msgspec.Struct):
        text: str

    assert learned(lambda: msgspec.convert({}, New))
    assert not learned(lambda: msgspec.convert({}, New))


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: str(kind.__name__))
def test_descriptions_of_jobs_are_known_when_they_are_imported(kind: Any) -> None:
    assert not learned(lambda: specs.parse({}, kind))


@pytest.mark.parametrize("kind", [records.Head, *records.KINDS], ids=lambda kind: str(kind.__name__))
def test_records_are_known_when_they_are_imported(kind: Any) -> None:
    assert not learned(lambda: msgspec.json.decode(b"{}", type=kind))
