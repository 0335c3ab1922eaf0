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

SILENT_SECONDS: Final = 20.0
"""A supervisor that has answered nothing for so long hangs."""
_PAUSE_SECONDS: Final = 2.0


def watch(keeper: KeeperClient, transfer: TransferClient) -> NoReturn:
    """For ever. The whole of a thread."""
    while True:
        try:
            look(keeper, transfer, SILENT_SECONDS)
        except StillframeError as error:
            say("engine", f"the transfer supervisor is not looked after: {error}")
        time.sleep(_PAUSE_SECONDS)


def look(keeper: KeeperClient, transfer: TransferClient, seconds: float) -> None:
    """Have the keeper's supervisor replaced if it does not answer for `seconds`. Raises what the keeper answers."""
    pid = keeper.list()["transfer"]
    if pid and not transfer.answers(seconds):
        say("engine", f"the transfer supervisor ({pid}) has not answered for {seconds:.0f} s; starting another")
        keeper.kick_transfer(pid)
