"""Pages of a listing. A token names the last entry that was shown, so it holds across restarts and changes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from driver.core.errors import Busy, InvalidArgument

T = TypeVar("T")
_MARK: Final = "after:"


def page(items: Sequence[T], key: Callable[[T], str], max_entries: int, token: str) -> tuple[list[T], str]:
    """One page of `items`, which are sorted by their distinct keys, and the next page's token.

    Raises InvalidArgument for a negative count; for a token of no listing, Busy: the specification wants ABORTED, so that
    the caller starts again.
    """
    if max_entries < 0:
        raise InvalidArgument(f"max_entries is {max_entries}")
    if token and not token.startswith(_MARK):
        raise Busy(f"{token[:128]!r} is no token of a listing: start again without one")
    after = token.removeprefix(_MARK)
    left = [item for item in items if not token or key(item) > after]
    shown = left[:max_entries] if max_entries else left
    return shown, f"{_MARK}{key(shown[-1])}" if len(shown) < len(left) else ""
