"""Where things are: the state folder, the repositories that `repositories.toml` names, the process's environment.

The only module that reads the environment. Any process, any thread.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from driver.core.errors import InvalidArgument, NotFound
from driver.core.ids import check_name

STATE_DEFAULT: Final = "/var/lib/stillframe"
REPOSITORIES_FILE: Final = "repositories.toml"
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_KEYS: Final = frozenset({"url", "endpoint", "region", "ca", "credentials", "default"})


@dataclass(frozen=True, slots=True)
class Repository:
    """A bucket and prefix (s3://bucket/prefix) or a folder (file:///folder), and how to reach it.

    `credentials` is the path of a shared credentials file in AWS's format; without it the environment decides.
    """

    name: str
    url: str
    endpoint: str | None = None
    region: str | None = None
    ca: str | None = None
    credentials: str | None = None
    default: bool = False


def state_folder() -> str:
    """$STILLFRAME_STATE, else /var/lib/stillframe."""
    return os.environ.get("STILLFRAME_STATE") or STATE_DEFAULT


def own_namespace() -> str:
    """The Kubernetes namespace of the pod that this is; `default` outside of a pod."""
    try:
        return _NAMESPACE_FILE.read_text().strip()
    except OSError:
        return "default"


def is_in_a_pod() -> bool:
    """Whether there is a service account to speak to Kubernetes with."""
    return _NAMESPACE_FILE.exists()


def environment(name: str) -> str | None:
    """A variable of the environment; None if it is unset or empty."""
    return os.environ.get(name) or None


def effective_user() -> int:
    """The user id that counts for permissions; 0 is root."""
    return os.geteuid()


def repositories_file(state: Path) -> Path:
    """$STILLFRAME_REPOSITORIES, else <state>/repositories.toml."""
    return Path(os.environ.get("STILLFRAME_REPOSITORIES") or state / REPOSITORIES_FILE)


def repositories(state: Path) -> list[Repository]:
    """All repositories that `repositories_file` names; none if there is no such file. Raises InvalidArgument."""
    path = repositories_file(state)
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}", "it must be TOML; the README has an example") from None
    tables = content.pop("repositories", {})
    if content or not isinstance(tables, dict):
        raise InvalidArgument(f"{path} may hold only [repositories.NAME] tables", "the README has an example")
    found = [_repository(path, name, table) for name, table in tables.items()]
    if sum(repository.default for repository in found) > 1:
        raise InvalidArgument(f"{path} has more than one default repository", "leave `default = true` in one")
    return found


def _repository(path: Path, name: str, table: object) -> Repository:
    check_name("repository", name)
    if not isinstance(table, dict):
        raise InvalidArgument(f"{path}: repository {name!r} is not a table", "write [repositories.NAME]")
    unknown = set(table) - _KEYS
    if unknown:
        raise InvalidArgument(
            f"{path}: repository {name!r} has unknown keys: {', '.join(sorted(unknown))}",
            f"known ones: {', '.join(sorted(_KEYS))}",
        )
    default = table.get("default", False)
    texts = {key: value for key, value in table.items() if key != "default"}
    if not isinstance(default, bool) or not all(isinstance(value, str) and value for value in texts.values()):
        raise InvalidArgument(f"{path}: repository {name!r}: every key takes a text, default takes true or false")
    if not texts.get("url", "").startswith(("s3://", "file:///")):
        raise InvalidArgument(
            f"{path}: repository {name!r} needs a url", "write s3://bucket/prefix or file:///folder"
        )
    return Repository(name=name, default=default, **texts)


def repository(state: Path, name: str | None) -> Repository:
    """The repository of that name; without one the default, or the only one. Raises NotFound, InvalidArgument."""
    found = repositories(state)
    if name is None:
        chosen = [item for item in found if item.default] or (found if len(found) == 1 else [])
        if not chosen:
            path = repositories_file(state)
            if found:
                mend = "name one with --repository, or put `default = true` under one"
                raise NotFound(f"{path} has no default repository", mend)
            raise NotFound(f"{path} has no repository", "add one (the README shows how)")
        return chosen[0]
    for item in found:
        if item.name == name:
            return item
    known = ", ".join(item.name for item in found) or "none"
    raise NotFound(
        f"there is no repository {name!r} (known: {known})",
        f"add it to {repositories_file(state)}, in a cluster to the chart's repositories, or name one that is known",
    )
