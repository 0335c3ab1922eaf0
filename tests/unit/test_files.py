"""Records on disk: replaced whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driver.core.errors import DataCorrupt
from driver.host import files


def test_a_record_that_cannot_be_written_leaves_the_old_one_whole(tmp_path: Path) -> None:
    """As when its writer is killed in the middle."""
    path = tmp_path / "record.json"
    files.write_json(path, {"number": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"number": 2, "text": "x" * 100_000, "no json": object()})
    assert files.read_json(path) == {"number": 1}
    files.write_json(path, {"number": 3})
    assert files.read_json(path) == {"number": 3}
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}x', "\0" * 4096])
def test_what_is_no_record_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(DataCorrupt, match=r"record\.json"):
        files.read_json(path)
