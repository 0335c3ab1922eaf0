"""One chunk as it is stored: its codec, its bytes, its digest. Pure; a `Compressor` belongs to one thread."""

from __future__ import annotations

import hashlib
from typing import Final

import zstandard

from driver.core.sizes import CHUNK_BYTES
from driver.transfer.records import corrupt
from driver.transfer.region import DIGEST_BYTES, Chunk, Codec

LEVEL: Final = 1
WORTH_BYTES: Final = CHUNK_BYTES * 97 // 100
"""A compressed chunk is stored only if it has at most this many bytes."""
_SAMPLE_BYTES: Final = 1024
_SAMPLES_AT: Final = range(0, CHUNK_BYTES, (CHUNK_BYTES - _SAMPLE_BYTES) // 3)
_SAMPLED_WORTH_BYTES: Final = len(_SAMPLES_AT) * _SAMPLE_BYTES * 96 // 100
_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024


def digest_of(data: memoryview | bytes) -> bytes:
    """SHA-256 of a chunk, its first 128 bits. Releases the GIL."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


class Compressor:
    """zstd at level 1, each chunk a frame of its own that tells its content's size."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)

    def compress(self, data: memoryview) -> bytes | None:
        """The frame of a chunk; None where it saves less than 3 %, or four samples of 1 KiB together less than 4 %.

        Releases the GIL. The samples cost 5 to 20 us; what they spare, on data that all but compresses, is 150 us.
        """
        if len(data) == CHUNK_BYTES:
            sample = b"".join([data[at : at + _SAMPLE_BYTES] for at in _SAMPLES_AT])
            if len(self._zstd.compress(sample)) > _SAMPLED_WORTH_BYTES:
                return None
        frame = self._zstd.compress(data)
        return frame if len(frame) <= WORTH_BYTES else None


class Decompressor:
    """Stored bytes to checked chunks. One thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)

    def restore(self, chunk: Chunk, stored: memoryview, key: str) -> memoryview:
        """The chunk's 64 KiB from its `length` stored bytes, which came from the object `key`. Raises DataCorrupt."""
        data = stored if chunk.codec == Codec.RAW else memoryview(self._unpack(stored, key, chunk.offset))
        if len(data) != CHUNK_BYTES or digest_of(data) != chunk.digest:
            raise corrupt(key, f"the chunk at byte {chunk.offset} does not match its digest")
        return data

    def _unpack(self, stored: memoryview, key: str, offset: int) -> bytes:
        try:
            if zstandard.frame_content_size(stored) != CHUNK_BYTES:
                raise corrupt(key, f"the frame at byte {offset} holds no chunk")
            data: bytes = self._zstd.decompress(stored, max_output_size=CHUNK_BYTES, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise corrupt(key, f"the frame at byte {offset} is damaged: {error}") from error
        return data
