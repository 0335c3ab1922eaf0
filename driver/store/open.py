"""From a repository's settings to its store, and what that store can do. Any thread."""

from __future__ import annotations

import threading
import time
from typing import Final
from urllib.parse import unquote, urlsplit

from driver.core.errors import InvalidArgument, Unsupported
from driver.core.settings import Repository
from driver.store import layout
from driver.store.directory import DirectoryStore
from driver.store.port import ObjectStore, Options, Store
from driver.store.retry import Policy, Retrying, Watch

PROBE_CONTENT: Final = b"stillframe: does this store honour If-None-Match?\n"
_PROBE_SECONDS: Final = 3600.0

_probed_lock: Final = threading.Lock()  # guards _probed
_probed: Final[dict[tuple[str, str | None], tuple[bool, float]]] = {}


def open_store(
    repository: Repository, policy: Policy, options: Options | None = None, watch: Watch | None = None
) -> Retrying:
    """The repository's store, its requests repeated as the policy says. Asks it nothing yet.

    Raises InvalidArgument (url, endpoint, CA file), AccessDenied (no credentials file), RepositoryUnavailable (a program
    that is to give credentials fails).
    """
    options = options or Options()
    store: Store
    parts = urlsplit(repository.url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        store = DirectoryStore(unquote(parts.path), options)
    elif parts.scheme == "s3":
        from driver.store.s3 import S3Store

        store = S3Store(repository, options)
    else:
        raise InvalidArgument(f"{repository.url!r} is no repository", "write s3://bucket/prefix or file:///folder")
    return Retrying(store, policy, watch)


def honours_conditions(repository: Repository, store: ObjectStore) -> bool:
    """Whether a second PUT with `If-None-Match: *` to one key loses. Known for an hour, in this process.

    The object it makes always has the same content, so that a store which ignores the condition loses nothing.
    """
    place = (repository.url, repository.endpoint)
    with _probed_lock:
        answer, until = _probed.get(place, (False, 0.0))
    if time.monotonic() < until:
        return answer
    try:
        first = store.put_if_absent(layout.PROBE, PROBE_CONTENT)
        answer = not first or not store.put_if_absent(layout.PROBE, PROBE_CONTENT)
    except Unsupported:
        answer = False
    with _probed_lock:
        _probed[place] = (answer, time.monotonic() + _PROBE_SECONDS)
    return answer
