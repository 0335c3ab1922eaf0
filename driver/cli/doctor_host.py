"""Gathers what `doctor_checks` judges: the one room of `stillframe doctor` that touches a host. Main thread, before others.

What it makes to try something out is gone when it returns: a file in the state folder, a loop device, a mount in a mount
namespace of a process of its own; a repository keeps the object `probe`, which every snapshot makes there too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver import __version__
from driver.cli.doctor_checks import PROGRAMS, HostFacts, RepositoryFact
from driver.core import settings
from driver.core.client import Client
from driver.core.errors import StillframeError
from driver.core.settings import Repository
from driver.host import kernel, loop, mountinfo
from driver.host.locks import RecordLocks
from driver.host.run import finish
from driver.store import layout
from driver.store.open import honours_conditions
from driver.transfer import catalog
from driver.transfer.small import Stores

_FUSE_SECONDS: Final = 5.0
_PLUGIN_SECONDS: Final = 5.0
_TRIED_BYTES: Final = 1 << 20
_PLUGIN_SOCKET: Final = "/run/stillframe/csi.sock"
_INIT_IN: Final = struct.Struct("<40xII")
_AT_ONCE: Final = 8
_LOOP_BLOCK_BYTES: Final = 4096


def gather(client: Client, groups: Iterable[str]) -> HostFacts:
    """The facts that the groups' checks need. Raises nothing for what is amiss: that is a fact."""
    wanted = set(groups)
    is_root = settings.effective_user() == 0
    state, looks = client.state, "kernel" in wanted and is_root
    return HostFacts(
        version=__version__, user=settings.effective_user(), kernel=os.uname().release, machine=os.uname().machine,
        capabilities=kernel.capabilities(), features=_features(),
        fuse=_fuse_minor() if looks else None, loop=_loop(state) if looks else None,
        fuse_timeout=_number(Path("/proc/sys/fs/fuse/max_request_timeout")),
        programs={name: _version(name) for name in PROGRAMS} if "host" in wanted else {},
        cgroup=_cgroup(), state=str(state), state_error=_state_error(state), state_type=_type_of(state),
        state_free=_free(state), direct_io=_direct_io(state) if "host" in wanted else "", memory_free=_memory_free(),
        engine=_engine(client), plugin=_plugin() if "running" in wanted else None,
        repositories=_repositories(state) if "repositories" in wanted else (),
    )  # fmt: skip


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# --- the kernel


def _features() -> dict[str, str]:
    """By name, why something does not work; empty if it does."""
    tried: dict[str, Callable[[], None]] = {
        "memfd": lambda: os.close(os.memfd_create("stillframe-doctor")),
        "MADV_POPULATE_WRITE": _populate,
        "open file description locks": _lock,
        "membarrier": _barrier,
    }
    return {name: _error(attempt) for name, attempt in tried.items()}


def _error(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    except StillframeError as error:
        return error.message
    return ""


def _populate() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page.madvise(kernel.MADV_POPULATE_WRITE)


def _lock() -> None:
    fd = os.memfd_create("stillframe-doctor")
    try:
        locks = RecordLocks(fd)
        locks.acquire(0)
        locks.close()
    finally:
        os.close(fd)


def _barrier() -> None:
    kernel.register_barrier()
    kernel.barrier_everywhere()


def _fuse_minor() -> int | str:
    """The minor of the protocol (7.x) that the kernel offers, or why there is none: from the first request on a mount in
    the mount namespace of a process of its own."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sending, _offered().encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return int(said) if said.isdigit() else said or "the trial ended without an answer"


def _offered() -> str:
    try:
        kernel.unshare_mounts()
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        kernel.mount("stillframe-doctor", "/tmp", "fuse", kernel.MS_NOSUID | kernel.MS_NODEV,
                     f"fd={fuse},rootmode=40000,user_id=0,group_id=0")  # fmt: skip
        if not select.select([fuse], [], [], _FUSE_SECONDS)[0]:
            return f"no request within {_FUSE_SECONDS:.0f} s of a mount"
        major, minor = _INIT_IN.unpack_from(os.read(fuse, 1 << 16))
    except OSError as error:
        return f"{error.filename or 'mount'}: {error.strerror}"
    return str(minor) if major == 7 else f"the kernel speaks FUSE {major}.{minor}"


@contextlib.contextmanager
def _trial(state: Path) -> Any:
    """A file in the state folder."""
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=state) as file:
        file.truncate(_TRIED_BYTES)
        yield file.name


def _loop(state: Path) -> str:
    """Why a loop device with direct I/O cannot be had; empty if it can."""
    if not state.is_dir():
        return f"there is no {state} to try it in"

    def attempt() -> None:
        node = f"/dev/stillframe-doctor-{os.getpid()}"
        with _trial(state) as file:
            loop.detach(node, loop.attach(file, node, _LOOP_BLOCK_BYTES, "stillframe-doctor"))

    return _error(attempt)


# --- the host


def _version(program: str) -> str | None:
    """The first line of what it says of itself; None if it is not installed. resize2fs has no option for that."""
    try:
        ended = finish([program] if program == "resize2fs" else [program, "-V"], 10.0)
    except StillframeError:
        return None
    said = (ended.output + ended.errors).strip().splitlines()
    return said[0].strip() if said else ""


def _cgroup() -> int:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return 2
    return 1 if Path("/sys/fs/cgroup/memory").exists() else 0


def _state_error(state: Path) -> str:
    try:
        with os.scandir(state):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _type_of(state: Path) -> str:
    """The file system that the folder is on."""
    with contextlib.suppress(OSError):
        device = os.stat(state).st_dev
        for mount in reversed(mountinfo.read()):
            if os.stat(mount.target).st_dev == device:
                return mount.fstype
    return ""


def _free(state: Path) -> int:
    try:
        status = os.statvfs(state)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def _direct_io(state: Path) -> str:
    if not state.is_dir():
        return ""

    def attempt() -> None:
        with _trial(state) as file, mmap.mmap(-1, mmap.PAGESIZE) as page:
            fd = os.open(file, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            try:
                os.pwrite(fd, page, 0)
            finally:
                os.close(fd)

    return _error(attempt)


def _memory_free() -> int:
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


# --- what runs


def _engine(client: Client) -> dict[str, Any] | str:
    try:
        return client.call("engine.info")
    except StillframeError as error:
        return error.message


def _plugin() -> str | None:
    """The version of the node plugin on this host; None if none is served where it usually is."""
    if not os.path.exists(_PLUGIN_SOCKET):
        return None
    with grpc.insecure_channel(f"unix://{_PLUGIN_SOCKET}") as channel:
        stub: Any = csi_pb2_grpc.IdentityStub(channel)
        try:
            return str(stub.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=_PLUGIN_SECONDS).vendor_version)
        except grpc.RpcError:
            return None


def _repositories(state: Path) -> tuple[RepositoryFact, ...] | str:
    try:
        known = settings.repositories(state)
    except StillframeError as error:
        return error.message
    except OSError as error:
        return f"{settings.repositories_file(state)}: {error.strerror}"
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(_asked, known))


def _asked(repository: Repository) -> RepositoryFact:
    try:
        store = Stores().get(repository).store
        is_there = catalog.check_repository(store)
        before = time.time()
        clock = store.list(f"{layout.SNAPSHOTS}doctor/").now - (before + time.time()) / 2
        conditional = honours_conditions(repository, store)
    except StillframeError as error:
        return RepositoryFact(repository.name, repository.url, error.message, error.hint)
    return RepositoryFact(repository.name, repository.url, "", "", conditional, clock, not is_there)
