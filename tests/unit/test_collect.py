"""What a garbage collection and a check believe of an index."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import pytest

from driver.core.errors import DataCorrupt
from driver.store import layout
from driver.store.directory import DirectoryStore
from driver.store.port import Options
from driver.store.retry import PATIENT, Retrying
from driver.transfer import collect, region
from driver.transfer.records import RegionEntry

LINEAGE = uuid.UUID(int=1)
KEY = layout.region(str(LINEAGE), str(uuid.UUID(int=2)))


def test_an_index_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    """Though it is whole: it may lack packs that the right one needs."""
    data = region.encode(region.build(0, LINEAGE, [region.ZERO_CHUNK], {}))
    other = region.encode(region.build(1, LINEAGE, [region.ZERO_CHUNK], {}))
    store = Retrying(DirectoryStore(str(tmp_path), Options()), PATIENT)
    store.put(KEY, [data])
    assert collect.read_packs(store, RegionEntry(0, KEY, len(data), hashlib.sha256(data).hexdigest()), KEY) == ()
    with pytest.raises(DataCorrupt, match=KEY):
        collect.read_packs(store, RegionEntry(0, KEY, len(data), hashlib.sha256(other).hexdigest()), KEY)
