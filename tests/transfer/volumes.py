"""Volumes to send."""

from __future__ import annotations

import random

from driver.core.sizes import CHUNK_BYTES


def make_volume(chunks: int, seed: int = 1) -> bytes:
    """Zero, compressible and incompressible chunks, in a random order."""
    rng = random.Random(seed)
    parts = []
    for _ in range(chunks):
        match rng.randrange(4):
            case 0:
                parts.append(bytes(CHUNK_BYTES))
            case 1:
                parts.append(rng.randbytes(512) * (CHUNK_BYTES // 512))
            case 2:
                parts.append(rng.randbytes(CHUNK_BYTES // 2) + bytes(CHUNK_BYTES // 2))
            case _:
                parts.append(rng.randbytes(CHUNK_BYTES))
    return b"".join(parts)


def random_volume(chunks: int, seed: int = 1) -> bytes:
    """Nothing that compresses."""
    return random.Random(seed).randbytes(chunks * CHUNK_BYTES)
