"""What people and scripts read: tables and progress on a terminal, plain lines elsewhere, JSON on demand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from driver.core.errors import StillframeError
from driver.core.sizes import format_size

_LINE_SECONDS: Final = 5.0


class Meter(Protocol):
    """Where a command reports how far it is."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None: ...


class Output:
    """`form` is text or json."""

    def __init__(self, form: str) -> None:
        self.is_json = form == "json"
        self._console = Console(highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """One line for people; nothing in JSON."""
        if not self.is_json:
            self._console.print(text, markup=False)

    def result(self, content: dict[str, Any], text: str) -> None:
        """The outcome: an object for scripts, or a line for people."""
        print(json.dumps(content, indent=2)) if self.is_json else self.line(text)

    def table(self, content: dict[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A list, with one row an item."""
        if self.is_json:
            print(json.dumps(content, indent=2))
            return
        if not self._console.is_terminal:
            for row in (columns, *rows):
                print("\t".join(row))
            return
        table = Table(*columns, box=None, header_style="bold")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def row(self, content: dict[str, Any], cells: Sequence[str]) -> None:
        """One more row, below a table that was shown."""
        print(json.dumps(content) if self.is_json else "\t".join(cells), flush=True)

    def fields(self, content: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> None:
        """One item, a line a field."""
        if self.is_json:
            print(json.dumps(content, indent=2))
            return
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            print(f"{name + ':':{width + 1}} {value}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Meter]:
        """A meter of bytes: a bar with rate and time left on a terminal, else a line every 5 s; nothing in JSON."""
        if self.is_json:
            yield lambda done_bytes, total_bytes: None
        elif self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
                TimeRemainingColumn(),
            )  # fmt: skip
            with Progress(*columns, console=self._console, transient=True) as bar:
                task = bar.add_task(what, total=None)
                yield lambda done_bytes, total_bytes: bar.update(
                    task, completed=done_bytes, total=total_bytes or None
                )
        else:
            yield _Lines(what)


class _Lines:
    """Progress as plain lines."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._last = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_SECONDS or not total_bytes:
            return
        self._last = now
        rate = done_bytes / (now - self._started)
        left = f", {(total_bytes - done_bytes) / rate:.0f} s left" if rate else ""
        percent = 100 * done_bytes // total_bytes
        print(f"{self._what}: {percent} %, {format_size(done_bytes)} of {format_size(total_bytes)}, "
              f"{format_size(rate)}/s{left}", flush=True)  # fmt: skip


def print_error(error: StillframeError, *, as_json: bool) -> None:
    """An error, on standard error: what was wrong in one line, what to do in another."""
    if as_json:
        print(json.dumps({"error": error.to_message()}), file=sys.stderr)
        return
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
