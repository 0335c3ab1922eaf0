"""The secrets with the certificates of both sides: made where there are none, and renewed in time. Any replica.

Two secrets, so that no node holds what the controller shows: `<name>-controller` has the authorities with their keys and the
controller's certificate, `<name>-node` that of the nodes. Replicas race safely: each writes only over what it has read, and
reads again if another was faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from driver.controller import authority
from driver.controller.authority import Authority
from driver.controller.kube import Kube
from driver.controller.seen import Held
from driver.core.errors import StillframeError
from driver.rpc import logs, tls
from driver.rpc.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE, Certificates

AUTHORITY_KEYS: Final = "ca.key"
_EVERY_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 2.0


class TlsSecrets:
    """Keeps both secrets good, and has the controller's certificates at hand. `clock` tells the time."""

    def __init__(self, kube: Kube, name: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._kube = kube
        self._controller = f"{name}-controller"
        self._node = f"{name}-node"
        self._clock = clock
        self._certificates: Certificates | None = None

    def certificates(self) -> Certificates | None:
        """The controller's; None until they were first read."""
        return self._certificates

    def start(self) -> None:
        """Keep them good from a thread, for ever."""
        threading.Thread(target=self._run, name="tls-secrets", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.ensure()
                wait = _EVERY_SECONDS
            except StillframeError as error:
                logs.log().warning("the TLS secrets cannot be kept", error=error.message, hint=error.hint)
                wait = _AGAIN_SECONDS
            except Exception:  # the outermost loop of a thread without which certificates run out
                logs.log().exception("defect")
                wait = _EVERY_SECONDS
            threading.Event().wait(wait)

    def ensure(self) -> None:
        """Read both secrets, and write what is missing or too old. Raises KubernetesUnavailable."""
        while True:
            held = self._kube.secret(self._controller)
            content, authorities = self._controllers(held)
            if self._is_kept(self._controller, content, held):
                break
        self._certificates = _certificates(content)
        while True:
            held = self._kube.secret(self._node)
            if self._is_kept(self._node, self._nodes(held, authorities), held):
                return

    def _is_kept(self, name: str, content: dict[str, bytes], held: Held | None) -> bool:
        """Whether the secret holds `content`, or was made to. False if another replica was faster."""
        if held is not None and held.content == content:
            return True
        kept = self._kube.put_secret(name, content, held.version if held is not None else None)
        if kept:
            logs.log().info("certificates were made", secret=name)
        return kept

    def _controllers(self, held: Held | None) -> tuple[dict[str, bytes], list[Authority]]:
        now = self._clock()
        before = held.content if held is not None else {}
        known = authority.load(before.get(CA_FILE, b""), before.get(AUTHORITY_KEYS, b""))
        authorities = authority.renewed(known, now)
        if authorities == known:
            trusted, keys = before[CA_FILE], before[AUTHORITY_KEYS]
        else:
            trusted, keys = authority.dump(authorities)
        content = self._leaf(before, trusted, authority.signing(authorities, now), tls.CONTROLLER_NAME, now)
        return {**content, AUTHORITY_KEYS: keys}, authorities

    def _nodes(self, held: Held | None, authorities: list[Authority]) -> dict[str, bytes]:
        now = self._clock()
        before = held.content if held is not None else {}
        trusted, _ = authority.dump(authorities)
        return self._leaf(before, trusted, authority.signing(authorities, now), tls.NODE_NAME, now)

    @staticmethod
    def _leaf(before: dict[str, bytes], trusted: bytes, by: Authority, name: str, now: datetime) -> dict[str, bytes]:
        held = _certificates({**before, CA_FILE: trusted})
        if held is not None and authority.is_good(held, by, name, now):
            return {CA_FILE: trusted, CERTIFICATE_FILE: held.certificate, KEY_FILE: held.key}
        usage = authority.CLIENT if name == tls.CONTROLLER_NAME else authority.SERVER
        certificate, key = authority.issue(by, name, usage, now)
        return {CA_FILE: trusted, CERTIFICATE_FILE: certificate, KEY_FILE: key}


def _certificates(content: dict[str, bytes]) -> Certificates | None:
    if not {CA_FILE, CERTIFICATE_FILE, KEY_FILE} <= set(content):
        return None
    return Certificates(content[CA_FILE], content[CERTIFICATE_FILE], content[KEY_FILE])
