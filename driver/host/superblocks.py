"""What the superblocks of ext4 and xfs say: their size, the size they could have, whether mkfs came to its end.

Pure functions on bytes; offsets from fs/ext4/ext4.h (struct ext4_super_block, little-endian, 1024 bytes into the device)
and fs/xfs/libxfs/xfs_format.h (struct xfs_dsb, big-endian, at its start). All raise DataCorrupt for bytes that are none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from driver.core.errors import DataCorrupt
from driver.core.sizes import MIB

FILE_SYSTEMS: Final = ("ext4", "xfs")
XFS_BYTES_MIN: Final = 300 * MIB
"""mkfs.xfs refuses below (mkfs/xfs_mkfs.c, validate_supported)."""
HEAD_BYTES: Final = 4096
"""How much of the device's start these functions read."""
PLACE_BYTES: Final = {"ext4": 2048, "xfs": 512}
"""Where the superblock is, counted from the device's start: zero until mkfs has written it.

mkfs.ext4 zeroes the boot block first; all else, an fsync, the superblock and an fsync follow in this order
(lib/ext2fs/closefs.c, ext2fs_flush2), so that a superblock stands for a whole file system even after a power loss.
mkfs.xfs zeroes the first 128 KiB, then writes the superblock with sb_inprogress, all else, and clears the flag;
only then does it sync (mkfs/xfs_mkfs.c).
"""

_PAGE_BYTES: Final = 4096
_EXT4: Final = 1024
_EXT4_MAGIC: Final = 0xEF53
_SPARSE_SUPER: Final = 0x1
_SPARSE_SUPER2: Final = 0x200
_64BIT: Final = 0x80
_SPARE_BLOCKS: Final = 50
"""A last group of ext4 with fewer blocks than this beside its tables is left out (resize/resize2fs.c, adjust_fs_info)."""
_XFS_MAGIC: Final = b"XFSB"
_XFS_GROUP_BLOCKS_MIN: Final = 64
"""XFS_MIN_AG_BLOCKS (xfs_fs.h): a last group with fewer blocks is left out (xfs_growfs_data_private in xfs_fsops.c)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """In blocks of the file system: what it has, and what it would have if it took the whole device."""

    blocks: int
    possible: int


def sizes(fstype: str, head: bytes, device_bytes: int) -> Sizes:
    """The sizes of the file system whose device starts with `head`."""
    if fstype == "ext4":
        return _ext4_sizes(head, device_bytes)
    block_bytes, blocks = struct.unpack_from(">IQ", _xfs(head), 4)
    return xfs_sizes(block_bytes, blocks, struct.unpack_from(">I", head, 84)[0], device_bytes)


def xfs_sizes(block_bytes: int, blocks: int, group_blocks: int, device_bytes: int) -> Sizes:
    """The sizes of an xfs by its geometry: `group_blocks` is sb_agblocks."""
    possible = device_bytes // block_bytes
    rest = possible % group_blocks
    return Sizes(blocks, possible if rest == 0 or rest >= _XFS_GROUP_BLOCKS_MIN else possible - rest)


def was_finished(fstype: str, head: bytes) -> bool:
    """Whether mkfs came to its end, as far as a killed process is concerned. ext4: always, see PLACE_BYTES."""
    return fstype == "ext4" or _xfs(head)[126] == 0


def was_never_written(fstype: str, head: bytes) -> bool:
    """Whether the kernel has not written this superblock yet: it was never unmounted, so a power loss may have cut mkfs.xfs.

    xfs: sb_lsn is 0 as mkfs leaves it. ext4: never said, its superblock stands for a whole file system.
    """
    return fstype == "xfs" and struct.unpack_from(">Q", _xfs(head), 240)[0] == 0


def _xfs(head: bytes) -> bytes:
    if head[:4] != _XFS_MAGIC:
        raise DataCorrupt("there is no superblock of xfs")
    return head


def _ext4_sizes(head: bytes, device_bytes: int) -> Sizes:
    block = head[_EXT4 : 2 * _EXT4]
    if struct.unpack_from("<H", block, 0x38)[0] != _EXT4_MAGIC:
        raise DataCorrupt("there is no superblock of ext4")
    low, first = struct.unpack_from("<I", block, 0x4)[0], struct.unpack_from("<I", block, 0x14)[0]
    compatible, incompatible, _ = struct.unpack_from("<III", block, 0x5C)
    wide = bool(incompatible & _64BIT)
    blocks = low | (struct.unpack_from("<I", block, 0x150)[0] << 32 if wide else 0)
    block_bytes = 1024 << struct.unpack_from("<I", block, 0x18)[0]
    group_blocks, inodes = struct.unpack_from("<I", block, 0x20)[0], struct.unpack_from("<I", block, 0x28)[0]
    possible = device_bytes // max(block_bytes, _PAGE_BYTES) * max(block_bytes, _PAGE_BYTES) // block_bytes
    if not wide:
        possible = min(possible, (1 << 32) - 1)
    groups = -(-(possible - first) // group_blocks)
    rest = (possible - first) % group_blocks
    tables = 2 + -(-inodes * struct.unpack_from("<H", block, 0x58)[0] // block_bytes)
    if _has_superblock(block, groups - 1, bool(compatible & _SPARSE_SUPER2)):
        descriptor_bytes = struct.unpack_from("<H", block, 0xFE)[0] if wide else 32
        tables += 1 + -(-groups // (block_bytes // descriptor_bytes)) + struct.unpack_from("<H", block, 0xCE)[0]
    if groups > 1 and 0 < rest < tables + _SPARE_BLOCKS:
        possible -= rest
    return Sizes(blocks, possible)


def _has_superblock(block: bytes, group: int, two_backups: bool) -> bool:
    """Whether a group has a copy of the superblock and the descriptors (lib/ext2fs/closefs.c, ext2fs_bg_has_super)."""
    if two_backups:
        return group in struct.unpack_from("<II", block, 0x24C)
    sparse = struct.unpack_from("<I", block, 0x64)[0] & _SPARSE_SUPER
    return group <= 1 or not sparse or any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
