"""On PYTHONPATH, this stops (SIGSTOP) the first process that comes to the point that $STILLFRAME_STOP_AT says.

A point is `<event> <file> <function>`, the event `call` or `return`. The file $STILLFRAME_STOPPED then holds the process's
id; where it is, nobody is stopped any more. Nothing of the driver is changed for it: the interpreter tells of calls
(sys.setprofile).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

_EVENT, _FILE, _FUNCTION = os.environ["STILLFRAME_STOP_AT"].split()
_STOPPED = os.environ["STILLFRAME_STOPPED"]


def _look(frame: FrameType, event: str, argument: Any) -> None:
    code = frame.f_code
    if (event, code.co_name) != (_EVENT, _FUNCTION) or os.path.basename(code.co_filename) != _FILE:
        return
    try:
        fd = os.open(_STOPPED, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(fd, str(os.getpid()).encode())
    os.close(fd)
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no further, while another one is told


sys.setprofile(_look)
threading.setprofile(_look)
