"""Domain errors: what was attempted, on what, and what the user can do about it.

Servers translate them (one table each); nothing here knows of exit codes or gRPC. An error crosses a
process border as `to_message()` and comes back by `from_message()` with its class.
"""

from __future__ import annotations

from typing import Any, ClassVar


class StillframeError(Exception):
    """Base of every error that a user may see. `hint` says what to do; it may be empty."""

    kinds: ClassVar[dict[str, type[StillframeError]]] = {}

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __init_subclass__(cls) -> None:
        StillframeError.kinds[cls.__name__] = cls

    def to_message(self) -> dict[str, str]:
        return {"kind": type(self).__name__, "message": self.message, "hint": self.hint}

    @staticmethod
    def from_message(fields: dict[str, Any]) -> StillframeError:
        """The error that `to_message` described; an unknown kind becomes `Internal`. Never raises."""
        kind = StillframeError.kinds.get(str(fields.get("kind", "")), Internal)
        return kind(str(fields.get("message", "an error without a message")), str(fields.get("hint", "")))


class InvalidArgument(StillframeError):
    """The request itself is wrong: a size of 0, a name with a slash."""


class NotFound(StillframeError):
    """No volume, snapshot, job or repository has that name."""


class RepositoryMissing(NotFound):
    """A repository's bucket or folder is not there, perhaps only not mounted: nothing is known of what is in it."""


class AlreadyExists(StillframeError):
    """The name is taken by something that differs from what was asked for."""


class FailedPrecondition(StillframeError):
    """The request is right but not now: the device is mounted, another session of the volume runs."""


class OutOfSpace(StillframeError):
    """The disk, the budget or the largest size does not allow it."""


class RepositoryUnavailable(StillframeError):
    """The object store does not answer, or answers with an error that may pass."""


class AccessDenied(StillframeError):
    """The object store refuses the credentials, or there are none."""


class DataCorrupt(StillframeError):
    """An object is missing, cut short or altered: its checksum does not match."""


class EngineUnavailable(StillframeError):
    """No engine runs on the state folder, or it does not answer."""


class NotPermitted(StillframeError):
    """The process lacks a privilege: it is not root, or the kernel refuses."""


class Unsupported(StillframeError):
    """The kernel, the store or the format lacks or exceeds what is needed here."""


class SnapshotFailed(StillframeError):
    """A session ended without a commit, for good."""


class DeviceError(StillframeError):
    """The node's own disk answered a read or a write with an error."""


class OutOfRange(StillframeError):
    """A size that cannot be: between a lower and an upper bound there is none that a volume can have."""


class Busy(StillframeError):
    """The same operation is in hand: ask again."""


class NodeUnavailable(StillframeError):
    """A node cannot be asked: it is not ready, gone, or its plugin does not answer. Nothing was begun there."""


class NodeSilent(StillframeError):
    """A node was asked and its answer did not come: what was asked may have been done."""


class KubernetesUnavailable(StillframeError):
    """The Kubernetes API does not answer, or refuses."""


class Internal(StillframeError):
    """A defect in Stillframe."""
