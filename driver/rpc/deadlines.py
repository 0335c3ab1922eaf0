"""How long a call may still take. gRPC's threads."""

from __future__ import annotations

import time
from typing import Final

import grpc

_SPARE_SECONDS: Final = 0.5
_WAIT_SECONDS_MAX: Final = 3600.0


def time_left(context: grpc.ServicerContext) -> float:
    """Seconds that a call may still wait for something, with some to spare for its answer; 0 once it is cancelled."""
    left = context.time_remaining()
    if not context.is_active():
        return 0.0
    return max(0.0, _WAIT_SECONDS_MAX if left is None else left - _SPARE_SECONDS)


def wait(context: grpc.ServicerContext, seconds: float) -> bool:
    """Sleep, or less if the call's time is up. False if it is."""
    time.sleep(min(seconds, time_left(context)))
    return time_left(context) > 0
