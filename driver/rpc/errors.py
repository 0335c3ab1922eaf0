"""What each domain error is to CSI: one table of gRPC codes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import grpc

from driver.core import errors

_TEXT_BYTES_MAX: Final = 4096
"""gRPC sends an error's text percent-encoded in its trailers, and refuses more than 8 KiB of those as RESOURCE_EXHAUSTED."""

CODES: Final[Mapping[type[errors.StillframeError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Busy: grpc.StatusCode.ABORTED,
    errors.RepositoryUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.AccessDenied: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NotPermitted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SnapshotFailed: grpc.StatusCode.INTERNAL,
    errors.DeviceError: grpc.StatusCode.INTERNAL,
    errors.NodeUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NodeSilent: grpc.StatusCode.UNAVAILABLE,
    errors.KubernetesUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Internal: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.StillframeError) -> grpc.StatusCode:
    """The code of its class, or of the nearest one above it; INTERNAL if none is in the table."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)


def text_of(error: errors.StillframeError) -> str:
    """What was wrong, and what to do."""
    return bounded(f"{error.message}; {error.hint}" if error.hint else error.message)


def bounded(text: str) -> str:
    """The beginning of a text, as much of it as an error may say."""
    kept = text[:_TEXT_BYTES_MAX]
    while len(quote(kept)) > _TEXT_BYTES_MAX:
        kept = kept[: len(kept) * 3 // 4]
    return kept if kept == text else f"{kept}…"
