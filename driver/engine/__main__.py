"""`python -m driver.engine --state FOLDER`: become the keeper of a state folder, first or in another one's place."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import socket
import sys
from typing import Final, NoReturn

from driver.core.errors import FailedPrecondition, StillframeError
from driver.core.exitcodes import exit_code
from driver.engine import handover
from driver.engine.handover import Holdings
from driver.engine.keeper import SOCKET, Keeper
from driver.engine.settings import GRACE_SECONDS
from driver.host import kernel, loop, mountinfo
from driver.host.cgroup import MemoryGroup, limited
from driver.host.log import say

_DEVICES: Final = "dev"


def lock_state(state: str) -> int:
    """The lock of the state folder, held by us and by all that we fork. Raises FailedPrecondition if another has it."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    lock = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            f"another engine runs on {state}",
            "take its volumes over with --take-over, stop it (stillframe engine stop), or use another --state",
        ) from None
    return lock


def prepare_mounts(state: str) -> int:
    """A place for device nodes that the host sees, and a mount namespace of our own. A descriptor of the host's one."""
    devices = f"{state}/{_DEVICES}"
    os.makedirs(devices, mode=0o700, exist_ok=True)
    if not os.path.ismount(devices):
        kernel.mount(mountinfo.DEVICES_SOURCE, devices, "tmpfs", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=0700,size=1m")
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    kernel.unshare_mounts()
    let_go_of_volumes()
    return host


def let_go_of_volumes() -> None:
    """Drop our copies of volumes' file systems: where the host's root is private we would not hear of their unmounting."""
    for mount in reversed(mountinfo.read()):
        if loop.is_of_an_engine(mount.device):
            with contextlib.suppress(OSError):  # dropped with what it is mounted on
                kernel.umount(mount.target, kernel.MNT_DETACH)


def hold(state: str, take_over: bool) -> tuple[Holdings, socket.socket | None]:
    """What the new keeper begins with: the lock alone, or all that another keeper has, and the connection to that one.

    Raises FailedPrecondition if another engine runs and is not to be taken over, Unsupported if it cannot be.
    """
    peer = handover.ask(f"{state}/run/{SOCKET}") if take_over else None
    if peer is None:
        return Holdings(lock_state(state)), None
    try:
        return handover.receive(peer), peer
    except BaseException:
        peer.close()
        raise


def transfer_group(state: str, limit_bytes: int) -> MemoryGroup | None:
    """A control group for the transfer processes; without one, where the host does not allow it."""
    try:
        return limited(f"stillframe-transfer-{os.stat(state).st_ino}", limit_bytes)
    except (OSError, KeyError) as error:
        say("keeper", f"the memory of transfer processes is not limited, there is no control group for them: {error}")
        return None


def take(keeper: Keeper, peer: socket.socket) -> None:
    """Serve the volumes from the moment on at which the other keeper's processes are dead. Raises StillframeError if that
    one goes on instead."""
    with peer:
        try:
            handover.tell(peer, "ready")
            handover.expect(peer, "dead")
            keeper.start_kept()
            handover.tell(peer, "taken")
        except handover.PeerDied as error:
            say("keeper", f"going on with what was handed over: {error}")
            keeper.start_kept()


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="stillframe-keeper")
    parser.add_argument("--state", required=True)
    parser.add_argument("--without-transfer", action="store_true", help="the transfer supervisor runs elsewhere")
    parser.add_argument("--transfer-memory", type=int, default=0, help="bytes for all transfer processes; 0: no limit")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds that a stop waits for devices in use")
    parser.add_argument("--take-over", action="store_true", help="take the volumes over from the keeper that runs")
    options, rest = parser.parse_known_args()
    state = os.path.realpath(options.state)
    try:
        holdings, peer = hold(state, options.take_over)
        host = prepare_mounts(state)
        kernel.set_process_name("sf-keeper")
        kernel.no_core_dump()
        with contextlib.suppress(OSError):  # who may not, stays as likely to be killed as others
            kernel.spare_from_oom_killer(os.getpid())
        gc.collect()
        gc.freeze()  # what is shared with the forks stays shared: no collection writes to it
        group = transfer_group(state, options.transfer_memory) if options.transfer_memory else None
        arguments = [*rest, "--grace", str(options.grace)]
        keeper = Keeper(state, holdings, arguments, options.grace, not options.without_transfer, group)
        if peer is not None:
            take(keeper, peer)
    except StillframeError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(exit_code(error))
    except OSError as error:
        sys.exit(f"error: {state}: {error}\nhint: run the engine as root")
    keeper.run()
    if not keeper.is_handed_over:
        kernel.enter_mounts(host)
        try:
            kernel.umount(f"{state}/{_DEVICES}")
        except OSError as error:
            say("keeper", f"{state}/{_DEVICES} stays mounted: {error}")
    sys.exit(keeper.exit_code)


if __name__ == "__main__":
    main()
