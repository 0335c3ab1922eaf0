"""Parameters of StorageClasses and VolumeSnapshotClasses: which there are, and their values. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from driver.core.errors import InvalidArgument
from driver.core.ids import check_name

_FOREIGN: Final = "csi.storage.k8s.io/"
"""Prefix of what Kubernetes' sidecars add for themselves."""


@dataclass(frozen=True, slots=True)
class VolumeParameters:
    """`processes` 0 is the engine's default; `mkfs_options` go to mkfs as they are."""

    provisioning: str = "thick"
    logical_block_size: int = 4096
    processes: int = 0
    mkfs_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotParameters:
    """`repository` None is the default one."""

    repository: str | None = None
    freeze: bool = False
    on_buffer_full: str = "throttle"


def _one_of(*values: str) -> Callable[[str, str], str]:
    def parse(key: str, value: str) -> str:
        if value not in values:
            raise InvalidArgument(f"parameter {key} is {value!r}", f"use {' or '.join(values)}")
        return value

    return parse


def _number(low: int, high: int) -> Callable[[str, str], int]:
    def parse(key: str, value: str) -> int:
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise InvalidArgument(f"parameter {key} is {value!r}", f"use a number from {low} to {high}")
        return int(value)

    return parse


def words(key: str, value: str) -> tuple[str, ...]:
    """A parameter's words, as a shell would part them. Raises InvalidArgument."""
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise InvalidArgument(f"parameter {key} is {value!r}: {error}") from None


def _repository(key: str, value: str) -> str:
    try:
        return check_name("repository", value)
    except InvalidArgument as error:
        raise InvalidArgument(f"parameter {key} is {value!r}", error.hint) from None


_Fields = Mapping[str, tuple[str, Callable[[str, str], Any]]]
_VOLUME: Final[_Fields] = {
    "provisioning": ("provisioning", _one_of("thick", "thin")),
    "logicalBlockSize": ("logical_block_size", lambda key, value: int(_one_of("512", "4096")(key, value))),
    "processes": ("processes", _number(1, 8)),
    "mkfsOptions": ("mkfs_options", words),
}
_SNAPSHOT: Final[_Fields] = {
    "repository": ("repository", _repository),
    "freeze": ("freeze", lambda key, value: _one_of("true", "false")(key, value) == "true"),
    "onBufferFull": ("on_buffer_full", _one_of("throttle", "fail")),
}
_RETENTION: Final = ("keep", "retention", "retain", "prune")
"""How keys begin that would say how long snapshots are kept."""


def _parse(kind: str, given: Mapping[str, str], fields: _Fields) -> dict[str, Any]:
    """`kind` is what has the parameters, for messages. Kubernetes lets nobody change a StorageClass's parameters."""
    anew = f"delete the {kind} and make it anew"
    parsed = {}
    for key, value in given.items():
        if key in fields:
            name, parse = fields[key]
            try:
                parsed[name] = parse(key, value)
            except InvalidArgument as error:
                raise InvalidArgument(f"the {kind}'s {error.message}", f"{error.hint or 'correct it'}; {anew}") from None
        elif not key.startswith(_FOREIGN):
            hint = f"known ones: {', '.join(sorted(fields))}; {anew}"
            if key.lower().startswith(_RETENTION):
                hint += '; a class does not say how long snapshots are kept: see docs/csi.md, "Old snapshots"'
            raise InvalidArgument(f"the {kind} has an unknown parameter {key!r}", hint)
    return parsed


def of_volume(given: Mapping[str, str]) -> VolumeParameters:
    """A StorageClass's parameters. Raises InvalidArgument for an unknown one of ours, or a wrong value."""
    return VolumeParameters(**_parse("StorageClass", given, _VOLUME))


def of_snapshot(given: Mapping[str, str]) -> SnapshotParameters:
    """A VolumeSnapshotClass's parameters. Raises InvalidArgument as `of_volume`."""
    return SnapshotParameters(**_parse("VolumeSnapshotClass", given, _SNAPSHOT))


def check_mutable(given: Mapping[str, str]) -> None:
    """Raises InvalidArgument if there is any mutable parameter."""
    if given:
        raise InvalidArgument(
            f"mutable parameters are given ({', '.join(sorted(given))}), but this driver has none",
            "use a StorageClass without a VolumeAttributesClass",
        )
