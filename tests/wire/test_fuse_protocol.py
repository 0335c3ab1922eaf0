"""FUSE requests and answers as bytes: laid out by hand after include/uapi/linux/fuse.h."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.core.errors import Unsupported
from driver.fuse import protocol
from driver.fuse.protocol import Op

# an INIT of protocol 7.45, 104 bytes
INIT = bytes.fromhex(
    "680000001a000000020000000000000000000000000000000000000000000000000000000000000007000000"
    "2d00000000000200fbfffff77b000000" + "00" * 44
)
# a WRITE of 4096 bytes at 0x12345000: 40 bytes of header, 40 of fuse_write_in
WRITE = struct.pack("<IIQQIIIHH", 80 + 4096, Op.WRITE, 77, 1, 0, 0, 9, 0, 0) + struct.pack(
    "<QQIIQII", 0, 0x12345000, 4096, 0, 0, 0x8002, 0
)


def test_init_is_answered_with_what_we_can() -> None:
    head = protocol.parse_head(INIT)
    assert (head.length, head.opcode, head.unique) == (104, Op.INIT, 2)
    answer = protocol.answer_init(head.unique, INIT)
    length, error, unique = struct.unpack_from("<IiQ", answer)
    assert (length, error, unique) == (len(answer), 0, 2) and len(answer) == 16 + 64
    major, minor, _, flags, _, _, max_write, _, max_pages, _ = struct.unpack_from("<IIIIHHIIHH", answer, 16)
    assert (major, minor, max_write, max_pages) == (7, 31, 1 << 18, 64)
    wanted = protocol.FUSE_ASYNC_READ | protocol.FUSE_BIG_WRITES | protocol.FUSE_ASYNC_DIO | protocol.FUSE_MAX_PAGES
    assert flags == wanted, "all of them, and nothing else of what the kernel can"


def test_a_request_shorter_than_its_header_is_refused() -> None:
    for length in (0, 39):
        with pytest.raises(Unsupported, match=f"{length} bytes"):
            protocol.parse_head(struct.pack("<I", length) + INIT[4:])
    assert protocol.parse_head(struct.pack("<I", 40) + INIT[4:]).length == 40


def test_an_old_kernel_is_refused() -> None:
    old = bytearray(INIT)
    struct.pack_into("<II", old, 40, 7, 26)
    with pytest.raises(Unsupported, match=r"7\.26"):
        protocol.answer_init(2, bytes(old))


def test_a_write_is_where_the_slot_words_look_for_it() -> None:
    assert protocol.parse_io(WRITE) == protocol.Range(0x12345000, 4096)
    words = memoryview(WRITE).cast("Q")
    assert words[0] == Op.WRITE << 32 | 80 + 4096
    assert words[1] == 77 and words[6] == 0x12345000 and words[7] & 0xFFFFFFFF == 4096


def test_a_discard_is_parsed() -> None:
    head = struct.pack("<IIQQIIIHH", 72, Op.FALLOCATE, 5, 1, 0, 0, 9, 0, 0)
    request = head + struct.pack("<QQQII", 0, 4096, 1 << 20, 3, 0)
    assert protocol.parse_fallocate(request) == protocol.Range(4096, 1 << 20, 3)


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (protocol.answer_attr(9, 1 << 30), 16 + 104),
        (protocol.answer_open(9), 16 + 16),
        (protocol.answer_statfs(9, 1 << 30), 16 + 80),
        (protocol.answer_write(9, 4096), 24),
        (protocol.answer(9), 16),
        (protocol.answer_error(9, 28), 16),
    ],
)
def test_answers_have_the_kernels_sizes(answer: bytes, length: int) -> None:
    said, _, unique = struct.unpack_from("<IiQ", answer)
    assert (said, len(answer), unique) == (length, length, 9)


def test_attributes_are_never_cached() -> None:
    valid, valid_nanoseconds = struct.unpack_from("<QI", protocol.answer_attr(9, 1 << 30), 16)
    assert (valid, valid_nanoseconds) == (0, 0)


def test_an_error_is_negative_and_never_zero() -> None:
    assert struct.unpack_from("<i", protocol.answer_error(1, 28), 4)[0] == -28
    assert struct.unpack_from("<i", protocol.answer_error(1, 0), 4)[0] == -5


@given(st.binary(min_size=104, max_size=200))
def test_any_bytes_are_parsed_or_refused(message: bytes) -> None:
    try:
        protocol.parse_head(message)
        protocol.answer_init(1, message)
    except Unsupported:
        pass
    protocol.parse_io(message)
    protocol.parse_fallocate(message)
