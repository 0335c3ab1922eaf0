"""What every command has: the engine's client, the output, and the type of size arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from driver.cli.output import Output
from driver.core.client import Client
from driver.core.errors import InvalidArgument
from driver.core.sizes import parse_duration, parse_size


@dataclass(frozen=True, slots=True)
class Context:
    client: Client
    output: Output


pass_context = click.make_pass_decorator(Context)


class Size(click.ParamType[int]):
    """A size such as 10Gi, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except InvalidArgument as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


SIZE = Size()


class Duration(click.ParamType[int]):
    """A time such as 24h, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(value)
        except InvalidArgument as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


DURATION = Duration()
