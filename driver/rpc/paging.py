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
    after = start(max_entries, token)
    left = [item for item in items if after is None or key(item) > after]
    shown = left[:max_entries] if max_entries else left
    return shown, token_after(key(shown[-1])) if len(shown) < len(left) else ""


def start(max_entries: int, token: str) -> str | None:
    """The key after which a page begins; None for the first one. Raises as `page`."""
    if max_entries < 0:
        raise InvalidArgument(f"max_entries is {max_entries}")
    if token and not token.startswith(_MARK):
        raise Busy(f"{token[:128]!r} is no token of a listing: start again without one")
    return token.removeprefix(_MARK) if token else None


def token_after(key: str) -> str:
    """The token of the page that begins after the entry of that key."""
    return f"{_MARK}{key}"
