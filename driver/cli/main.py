"""`stillframe`: the outermost loop of the command line. No traceback reaches a user from here."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import click

from driver import __version__
from driver.cli.context import Context
from driver.cli.controller import controller
from driver.cli.csi import csi
from driver.cli.demo import demo
from driver.cli.doctor import doctor
from driver.cli.engine import engine
from driver.cli.node import node
from driver.cli.output import Output, print_error
from driver.cli.repository import repository
from driver.cli.snapshot import snapshot
from driver.cli.uninstall import uninstall_check
from driver.cli.volume import volume
from driver.core import settings
from driver.core.client import Client
from driver.core.errors import Internal, InvalidArgument, StillframeError
from driver.core.exitcodes import INTERRUPTED, exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--state", type=click.Path(path_type=Path), help="State folder [default: $STILLFRAME_STATE or "
              "/var/lib/stillframe]")  # fmt: skip
@click.option("--output", "form", type=click.Choice(["text", "json"]), default="text", help="What is printed.")
@click.version_option(__version__, prog_name="stillframe")
@click.pass_context
def cli(context: click.Context, state: Path | None, form: str) -> None:
    """Block volumes on this host's disk, snapshotted to an object store while they are written."""
    context.obj = Context(Client((state or Path(settings.state_folder())).absolute()), Output(form))


for command in (engine, volume, snapshot, repository, node, controller, csi, demo, doctor, uninstall_check):
    cli.add_command(command)


def main(command: click.Command = cli) -> None:
    """Run the command line; exits with the code of `driver.core.exitcodes`."""
    as_json = "--output=json" in sys.argv or ("json" in sys.argv and bool({"--output", "-o"} & set(sys.argv)))
    try:
        sys.exit(command.main(standalone_mode=False) or 0)
    except StillframeError as error:
        print_error(error, as_json=as_json)
        sys.exit(exit_code(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        usage = InvalidArgument(error.format_message(), "see the command's --help")
        print_error(usage, as_json=as_json)
        sys.exit(exit_code(usage))
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:  # the outermost loop of the program
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        defect = Internal(f"{type(error).__name__}: {error} ({where})", "this is a defect of Stillframe; please report it")
        print_error(defect, as_json=as_json)
        sys.exit(exit_code(defect))


if __name__ == "__main__":
    main()
