"""A snapshot that goes while it is read."""

from __future__ import annotations

import pytest

from driver.core.errors import DataCorrupt, NotFound, StillframeError
from driver.core.settings import Repository
from driver.store import layout
from driver.store.open import open_store
from driver.store.retry import BRIEF
from driver.transfer import catalog
from driver.transfer.restore import Nowhere, Reader
from tests.transfer.rig import Rig
from tests.transfer.volumes import random_volume


@pytest.mark.parametrize("part", ["packs", "regions"])
def test_a_snapshot_that_was_deleted_and_collected_meanwhile_is_not_damaged(rig: Rig, part: str) -> None:
    session = rig.session(rig.add_folder(), random_volume(20))
    session.send()
    session.close()
    folder = rig.folder / "repository-folder"
    store = open_store(Repository("folder", f"file://{folder}"), BRIEF)
    reader = Reader(store, catalog.committed(store, session.id), Nowhere(), lambda done: None)

    def failure() -> StillframeError:
        with pytest.raises(StillframeError) as caught:
            reader.run()
        return caught.value

    (path,) = (folder / "lineages").glob(f"*/{part}/*")
    path.unlink()
    assert isinstance(failure(), DataCorrupt) and path.name in failure().message
    catalog.delete(store, session.id, conditions=True, only_writer=False)
    assert isinstance(failure(), NotFound) and "was deleted" in failure().message
    for key in (layout.manifest(session.id), layout.tombstone(session.id)):
        store.delete(key)
    assert isinstance(failure(), NotFound) and session.id in failure().message
