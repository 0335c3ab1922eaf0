"""`python -m tests.node.stepping ORDER …`: the command line, which kills itself at a step of one CSI call.

It is forked anew for each line of the standard input, so that what it imports is imported once: its pid is answered, then,
when it has ended, an empty line.

ORDER is a file with `<method> <n>`: the n-th step of that call is where it dies. A step is what the call does to the world:
it asks the engine, runs a program (before it and while it runs), mounts, unmounts, makes or removes something; it dies just
before that, which is just after the step before, and at last when all is done and nothing answered. Nothing of the driver is
changed for it: the interpreter tells of calls (sys.setprofile).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Final

from driver.cli.main import main as command_line

_OURS: Final = {
    ("client.py", "call"), ("run.py", "finish"), ("kernel.py", "mount"), ("kernel.py", "umount"),
    ("kernel.py", "bind_mount"),
}  # fmt: skip
_THEIRS: Final = {"mkdir", "rmdir", "unlink", "remove", "fork_exec"}
CALLS: Final = {"NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume", "NodeExpandVolume"}


class Stepping:
    """Counts the steps of one thread's call."""

    def __init__(self, order: Path) -> None:
        self._order = order
        self._here = threading.local()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in CALLS:
            method, _, number = self._order.read_text().partition(" ")
            self._here.left = int(number) if method == code.co_name else 0
        elif getattr(self._here, "left", 0):
            is_end = event == "return" and code.co_name in CALLS
            if is_end or self._is_step(frame, event, argument):
                self._here.left -= 1
                if self._here.left == 0:
                    self._order.write_text("died 0")
                    os.kill(os.getpid(), signal.SIGKILL)
            if is_end:
                self._here.left = 0

    @staticmethod
    def _is_step(frame: FrameType, event: str, argument: Any) -> bool:
        if event == "call":
            return (os.path.basename(frame.f_code.co_filename), frame.f_code.co_name) in _OURS
        name = getattr(argument, "__name__", "")
        return (event == "c_call" and name in _THEIRS) or (event == "c_return" and name == "fork_exec")


def main() -> None:
    order = Path(sys.argv.pop(1))
    for _ in sys.stdin:
        if (pid := os.fork()) == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            threading.setprofile(Stepping(order))
            command_line()
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print(flush=True)


if __name__ == "__main__":
    main()
