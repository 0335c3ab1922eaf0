"""What each domain error is to a script: the exit codes of `stillframe`, in one table. 130 is an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from driver.core import errors

EXIT_CODES: Final[Mapping[type[errors.StillframeError], int]] = {
    errors.Internal: 1,
    errors.InvalidArgument: 2,
    errors.NotFound: 3,
    errors.AlreadyExists: 4,
    errors.FailedPrecondition: 5,
    errors.OutOfSpace: 6,
    errors.RepositoryUnavailable: 7,
    errors.AccessDenied: 8,
    errors.DataCorrupt: 9,
    errors.EngineUnavailable: 10,
    errors.NotPermitted: 11,
    errors.Unsupported: 12,
    errors.SnapshotFailed: 13,
    errors.DeviceError: 14,
    errors.OutOfRange: 15,
    errors.Busy: 16,
    errors.NodeUnavailable: 17,
    errors.NodeSilent: 18,
    errors.KubernetesUnavailable: 19,
}
INTERRUPTED: Final = 130


def exit_code(error: errors.StillframeError) -> int:
    """The exit code of an error: of its class, or of the nearest one above it; 1 if none is in the table."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)
