"""`stillframe demo`: the main job on real input, checked, told in a few lines."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import click

from driver.cli.context import SIZE, Context, pass_context
from driver.cli.demo.stage import Stage
from driver.cli.demo.story import tell
from driver.core.errors import InvalidArgument, NotPermitted
from driver.core.settings import effective_user


@click.command()
@click.option("--repository", "url", help="file:///folder or s3://bucket/prefix?endpoint=…&region=… (credentials from "
              "AWS_*) [default: a folder of the demo's]")  # fmt: skip
@click.option("--size", type=SIZE, default="2Gi", show_default=True, help="Size of the volume, at least 512Mi.")
@click.option("--dir", "parent", type=click.Path(path_type=Path, exists=True, file_okay=False), default="/var/tmp",
              show_default=True, help="Where the demo's folder is made.")  # fmt: skip
@pass_context
def demo(context: Context, url: str | None, size: int, parent: Path) -> None:
    """Snapshot a volume while a database writes to it, restore it, and check every byte. Cleans up after itself."""
    if effective_user() != 0:
        raise NotPermitted("the demo must run as root: it makes a volume and mounts it", "use sudo")
    if size < 512 << 20:
        raise InvalidArgument("the demo needs a volume of at least 512 MiB", "leave --size away")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stillframe-demo-", dir=parent)))
        stage = stack.enter_context(Stage(folder, _repository(url, folder)))
        story = tell(stage, size, context.output)
    context.output.result(story, "The demo has cleaned up after itself.")


def _repository(url: str | None, folder: Path) -> dict[str, str]:
    """The keys of the repository in repositories.toml. Raises InvalidArgument."""
    if url is None:
        (folder / "repository").mkdir()
        return {"url": f"file://{folder}/repository"}
    parts = urlsplit(url)
    keys = dict(parse_qsl(parts.query))
    unknown = set(keys) - {"endpoint", "region", "ca", "credentials"}
    if unknown or parts.scheme not in ("s3", "file"):
        raise InvalidArgument(f"{url!r} is no repository", "write s3://bucket/prefix?endpoint=…&region=… or file:///folder")
    return {"url": f"{parts.scheme}://{parts.netloc}{parts.path}", **keys}
