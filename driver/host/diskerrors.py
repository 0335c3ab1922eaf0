"""What an error of this host's disk means to a user. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final, TypeGuard

from driver.core.errors import DeviceError, OutOfSpace, StillframeError

_MEANINGS: Final[Mapping[int | None, tuple[type[StillframeError], str]]] = {
    errno.ENOSPC: (OutOfSpace, "make room on it"),
    errno.EDQUOT: (OutOfSpace, "raise the quota, or make room"),
    errno.EFBIG: (OutOfSpace, "take a smaller one, or another file system: this one's files cannot be so large"),
    errno.EIO: (DeviceError, "check the disk (dmesg, smartctl)"),
    errno.EROFS: (DeviceError, "it was mounted, or has become, read-only: see dmesg"),
}


def is_of_the_disk(error: Exception) -> TypeGuard[OSError]:
    """Whether it is one that tells of a disk, and of no defect of ours."""
    return isinstance(error, OSError) and error.errno in _MEANINGS


def disk_error(error: OSError, what: str) -> StillframeError:
    """The domain error, OutOfSpace or DeviceError, for an error with `what`: a disk, or what was done on one."""
    kind, hint = _MEANINGS.get(error.errno, (DeviceError, "look at the disk and its file system: see dmesg"))
    return kind(f"{what}: {error}", hint)
