"""Child processes that die with their parent: forks of this process, and fresh interpreters. Single-threaded callers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence

from driver.host import kernel


def fork(main: Callable[[], None], keep: Sequence[int], name: str) -> int:
    """Run `main` in a fork that has no descriptors but 0, 1, 2 and `keep`; the child's pid.

    The child exits with 0 when `main` returns, with 1 and a traceback on standard error when it raises.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        kernel.die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        kernel.set_process_name(name)
        _close_others(keep)
        main()
    except BaseException:  # the outermost frame of a process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _close_others(keep: Sequence[int]) -> None:
    low = 3
    for fd in sorted({fd for fd in keep if fd >= 3}):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


def spawn_module(module: str, arguments: Sequence[str], keep: Sequence[int]) -> int:
    """Start `python -m module arguments…` with the descriptors `keep` under their numbers; the child's pid."""
    return popen_module(module, arguments, keep).pid


def popen_module(module: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
    """`spawn_module` as a Popen, for a parent that does not reap by itself."""
    command = [sys.executable, "-m", "driver.host.bound", str(os.getpid()), module, *arguments]
    return subprocess.Popen(command, pass_fds=list(keep), stdin=subprocess.DEVNULL)
