"""The sizes that the block path, the session and the bucket format are made of, and sizes and times as people write them."""

from __future__ import annotations

import re
from typing import Final

from driver.core.errors import InvalidArgument

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

UNIT_BYTES: Final = 4 * KIB
"""Grain of pre-images."""
CHUNK_BYTES: Final = 64 * KIB
"""Grain of change tracking, hashing, compression and upload."""
UNITS_PER_CHUNK: Final = CHUNK_BYTES // UNIT_BYTES
REGION_BYTES: Final = GIB
"""What one index object describes."""
CHUNKS_PER_REGION: Final = REGION_BYTES // CHUNK_BYTES
PACK_BYTES: Final = 16 * MIB
"""Uncompressed bytes of the chunks in one pack, at most."""
CHUNKS_PER_PACK: Final = PACK_BYTES // CHUNK_BYTES

VOLUME_BYTES_MIN: Final = MIB
VOLUME_BYTES_MAX: Final = 16 * TIB - CHUNK_BYTES

_SUFFIXES: Final = {
    "": 1, "B": 1,
    "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KI": KIB, "MI": MIB, "GI": GIB, "TI": TIB,
    "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB,
}  # fmt: skip
_SIZE: Final = re.compile(r"\s*(\d{1,20}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*")


_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,5})([mhd]?)")


def parse_size(text: str) -> int:
    """Bytes of a size such as 10Gi, 512MiB, 1.5T or 1048576 (Kubernetes' and IEC's suffixes). Raises InvalidArgument."""
    match = _SIZE.fullmatch(text)
    factor = _SUFFIXES.get(match[2].upper()) if match else None
    if not match or factor is None:
        raise InvalidArgument(f"{text!r} is not a size", "write it like 10Gi, 512Mi or 1048576")
    whole, _, fraction = match[1].partition(".")
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)


def parse_duration(text: str) -> int:
    """Seconds of a time such as 24h, 90m or 7d; 0, or at most 99999 of them. Raises InvalidArgument."""
    match = _DURATION.fullmatch(text)
    if match and int(match[1]) == 0:
        return 0
    if not match or not match[2]:
        raise InvalidArgument(f"{text!r} is not a time", "write it like 24h, 90m or 7d; 0 is never")
    return int(match[1]) * _SECONDS[match[2]]


def format_size(size_bytes: float) -> str:
    """A size for people, in IEC units: 1.5 GiB."""
    value = float(size_bytes)
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {suffix}" if suffix == "B" else f"{value:.1f} {suffix}"
        value /= 1024
    return f"{value:.1f} TiB"


def chunks_of(size_bytes: int) -> int:
    """Chunks in a volume of `size_bytes`, which is a multiple of 64 KiB."""
    return size_bytes // CHUNK_BYTES


def regions_of(size_bytes: int) -> int:
    """Regions in a volume of `size_bytes`; the last one may be short."""
    return -(-size_bytes // REGION_BYTES)


def volume_size(asked_bytes: int) -> int:
    """`asked_bytes` rounded up to a multiple of 64 KiB. Raises InvalidArgument outside 1 MiB to 16 TiB - 64 KiB."""
    if asked_bytes < VOLUME_BYTES_MIN:
        raise InvalidArgument(
            f"a volume of {format_size(asked_bytes)} is too small", f"the smallest is {format_size(VOLUME_BYTES_MIN)}"
        )
    size_bytes = -(-asked_bytes // CHUNK_BYTES) * CHUNK_BYTES
    if size_bytes > VOLUME_BYTES_MAX:
        raise InvalidArgument(
            f"a volume of {format_size(asked_bytes)} is too large", "the largest is 16 TiB less 64 KiB"
        )
    return size_bytes
