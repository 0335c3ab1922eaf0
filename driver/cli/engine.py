"""`stillframe engine`: run, transfer, info, stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from driver.cli.context import SIZE, Context, pass_context
from driver.core import settings
from driver.core.errors import EngineUnavailable, InvalidArgument, NotPermitted, Unsupported
from driver.core.sizes import format_size
from driver.engine.clients import TransferClient
from driver.engine.records import Folder
from driver.engine.settings import GRACE_SECONDS, PROCESSES, Settings
from driver.engine.vigil import hangs
from driver.host.diskerrors import disk_error


@click.group()
def engine() -> None:
    """The engine that serves the volumes of a state folder."""


@engine.command()
@click.option("--node", default=lambda: os.uname().nodename, show_default="the host's name",
              help="The node's name in handles and snapshots.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 8), default=PROCESSES, show_default=True, help="Processes a volume.")
@click.option("--session-memory", type=SIZE, default="256Mi", show_default=True, help="Memory of one snapshot.")
@click.option("--node-memory", type=SIZE, default="1Gi", show_default=True, help="Memory of all of them together.")
@click.option("--spill", type=SIZE, default="4Gi", show_default=True, help="Disk that one may use when its memory is full.")
@click.option("--upload-rate", type=SIZE, default="0", show_default=True, help="Bytes a second of an upload; 0: no limit.")
@click.option("--grace", type=click.FloatRange(0), default=GRACE_SECONDS, show_default=True,
              help="Seconds that a stop waits for devices in use, before it takes them away.")  # fmt: skip
@click.option("--transfer-memory", type=SIZE, default="0", show_default=True,
              help="Memory of all uploads and restores together, by a control group; 0: no limit.")  # fmt: skip
@click.option("--without-transfer", is_flag=True,
              help="Start no transfer supervisor: it runs elsewhere (`engine transfer`).")  # fmt: skip
@click.option("--take-over", is_flag=True,
              help="Take the volumes over from the engine that runs, if one does; they stay in use.")  # fmt: skip
@pass_context
def run(
    context: Context, node: str, processes: int, session_memory: int, node_memory: int, spill: int, upload_rate: int,
    grace: float, transfer_memory: int, without_transfer: bool, take_over: bool,
) -> None:  # fmt: skip
    """Run the engine in the foreground, until it is stopped (SIGTERM or `engine stop`)."""
    state = context.client.state
    checked = Settings(state, node_memory, session_memory, spill, upload_rate, processes, grace, node=node)
    if settings.effective_user() != 0:
        raise NotPermitted("the engine must run as root: it mounts FUSE and makes loop devices", "use sudo")
    _check_folder(state)
    for device, module in (("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")):
        if not os.path.exists(device):
            raise Unsupported(f"there is no {device}", f"load the kernel module: modprobe {module}")
    arguments = [
        "--state", str(state), "--node", checked.node, "--processes", str(checked.processes),
        "--session-memory", str(checked.session_bytes), "--node-memory", str(checked.node_bytes),
        "--spill", str(checked.spill_bytes), "--upload-rate", str(checked.upload_rate),
        "--grace", str(checked.grace_seconds), *(["--without-transfer"] if without_transfer else []),
    ]  # fmt: skip
    if transfer_memory:
        arguments += ["--transfer-memory", str(transfer_memory)]
    if take_over:
        arguments.append("--take-over")
    os.execv(sys.executable, [sys.executable, "-m", "driver.engine", *arguments])


def _check_folder(state: Path) -> None:
    """Make what a state folder has. Raises InvalidArgument, OutOfSpace, DeviceError, Unsupported, DataCorrupt."""
    try:
        Folder(state).engine_id()
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgument(f"{state} cannot be the state folder: {error}", "name another one with --state") from error
    except OSError as error:
        raise disk_error(error, "the state folder's disk") from error


@engine.command()
@click.option("--check", is_flag=True, help="Only see whether the one that runs answers; if not, end with an error.")
@pass_context
def transfer(context: Context, check: bool) -> None:
    """Run the transfer supervisor of an engine that was started --without-transfer, until it is stopped (SIGTERM).

    It may live in a container of its own, with a memory limit: what it needs is the engine's state folder.
    """
    if check:
        if hangs(TransferClient(context.client.state / "run" / "transfer.sock")):
            raise EngineUnavailable("the transfer supervisor does not answer any more", "kill it: it is started again")
        return
    command = [sys.executable, "-m", "driver.transfer.supervisor", "--state", str(context.client.state)]
    os.execv(sys.executable, command)


@engine.command()
@pass_context
def info(context: Context) -> None:
    """Show the running engine: version, settings, repositories."""
    shown = context.client.call("engine.info")
    settings = shown["settings"]
    repositories = ", ".join(
        f"{item['name']} ({item['url']}{', default' if item['default'] else ''})" for item in shown["repositories"]
    )
    context.output.fields(
        shown,
        [
            ("version", shown["version"]),
            ("state folder", shown["state"]),
            ("engine id", shown["engine_id"]),
            ("pid", str(shown["pid"])),
            ("repositories", repositories or f"none; add one to {shown['state']}/repositories.toml"),
            ("session memory", format_size(settings["session_bytes"])),
            ("node memory", format_size(settings["node_bytes"])),
            ("spill", format_size(settings["spill_bytes"])),
            ("upload rate", f"{format_size(settings['upload_rate'])}/s" if settings["upload_rate"] else "no limit"),
            ("volumes held", str(len(shown["processes"]["volumes"]))),
        ],
    )


@engine.command()
@click.option("--grace", type=click.FloatRange(0), default=GRACE_SECONDS, show_default=True,
              help="Seconds to wait for devices in use, before they are taken away.")  # fmt: skip
@pass_context
def stop(context: Context, grace: float) -> None:
    """Detach all volumes and end the engine. Devices in use are waited for, then taken away: what is mounted
    gets I/O errors.

    Snapshots that are still uploading fail. `engine run --take-over` replaces an engine without either. Returns at once.
    """
    context.client.call("engine.stop", grace_seconds=grace)
    text = f"the engine is stopping; devices in use have {grace:g} s until they are taken away"
    context.output.result({"stopping": True}, text)
