"""Has a transfer supervisor replaced that stands still: it takes connections, and answers nothing. A thread of the service.

Its jobs die with it, so it is given more time than any of them. One that runs in another container is started again by
the kubelet, which asks `stillframe engine transfer --check`.
"""

from __future__ import annotations

import time
from typing import Final, NoReturn

from driver.core.errors import StillframeError
from driver.engine.clients import KeeperClient, TransferClient
from driver.host.log import say

LOOK_SECONDS: Final = 2.0
SILENT_LOOKS: Final = 20
"""A supervisor that has answered none of so many calls in a row, each within that time, hangs. Looks are counted, not time:
when the machine stands still, nobody can answer anything."""
_PAUSE_SECONDS: Final = 2.0


def watch(keeper: KeeperClient, transfer: TransferClient) -> NoReturn:
    """For ever. The whole of a thread."""
    while True:
        try:
            look(keeper, transfer)
        except StillframeError as error:
            say("engine", f"the transfer supervisor is not looked after: {error}")
        time.sleep(_PAUSE_SECONDS)


def look(keeper: KeeperClient, transfer: TransferClient) -> None:
    """Have the keeper's supervisor replaced if it hangs. Raises what the keeper answers."""
    pid = keeper.list()["transfer"]
    if pid and hangs(transfer):
        seconds = SILENT_LOOKS * LOOK_SECONDS
        say("engine", f"the transfer supervisor ({pid}) has not answered for {seconds:.0f} s; starting another")
        keeper.kick_transfer(pid)


def hangs(transfer: TransferClient) -> bool:
    """Whether the supervisor stands still; takes as long as it is silent."""
    return not any(transfer.answers(LOOK_SECONDS) for _ in range(SILENT_LOOKS))
