"""What is repeated, and what is not asked again."""

from __future__ import annotations

from pathlib import Path

from driver.core.errors import RepositoryUnavailable
from driver.store.directory import DirectoryStore
from driver.store.port import Options, Page
from driver.store.retry import Policy, Retrying, Watch


class Paged(DirectoryStore):
    """Lists one object a page, and fails at each page's first attempt."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), Options())
        self.asked: list[str | None] = []

    def page(self, prefix: str, after: str | None) -> Page:
        self.asked.append(after)
        if self.asked.count(after) == 1:
            raise RepositoryUnavailable("a hiccup")
        objects = super().page(prefix, None).objects
        number = int(after or 0)
        following = str(number + 1) if number + 1 < len(objects) else None
        return Page(objects[number : number + 1], 1000.0 + number, following)


def test_a_page_of_a_listing_is_repeated_by_itself(tmp_path: Path) -> None:
    """So that a long one does not begin again, and each of its requests has its own time."""
    raw = Paged(tmp_path)
    for key in "abc":
        raw.put(f"x/{key}", [b""])
    counted: list[str] = []
    watch = Watch(lambda: counted.append("request"), lambda: counted.append("retry"))
    store = Retrying(raw, Policy(60.0, cap_seconds=0.01), watch)
    found = store.list("x/", lambda: counted.append("between"))
    assert [item.key for item in found.objects] == ["x/a", "x/b", "x/c"]
    assert found.now == 1000.0, "nothing may look older than it is"
    assert raw.asked == [None, None, "1", "1", "2", "2"]
    assert (counted.count("request"), counted.count("retry"), counted.count("between")) == (6, 3, 2)
