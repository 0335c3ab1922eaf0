"""Tells claims and VolumeSnapshots by events how far their uploads and restores are, and how they ended.

One replica does, by the lease. Each ten seconds it asks the nodes that can be asked; Kubernetes is asked only while there is
something new to tell, so that an object costs it at most one request in ten seconds, and one more at the first.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Final

from driver.controller.events import About, Event, about, events, given_up, unheard
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.nodes import Nodes
from driver.controller.repositories import Repositories
from driver.core.errors import KubernetesUnavailable, StillframeError
from driver.rpc import logs, progress
from driver.rpc.described import READY
from driver.rpc.names import DRIVER, parse_handle
from driver.rpc.progress import Kind, Stage, Work

EVERY_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 10.0
_LOOKS: Final = 6
"""So often it is looked up whom a work is told to: what has nobody then has nobody."""
_ABORTED: Final = "aborted"
_DELETED: Final = "deleted"


class Herald:
    """Remembers what it has told since it got the lease, so that nothing is told twice."""

    def __init__(self, nodes: Nodes, repositories: Repositories, kube: Kube, lease: Lease) -> None:
        self._nodes = nodes
        self._repositories = repositories
        self._kube = kube
        self._lease = lease
        self._forget()

    def _forget(self) -> None:
        self._about: dict[str, About] = {}
        self._looked: Counter[str] = Counter()
        self._running: dict[str, Work] = {}
        self._ended: set[str] = set()
        self._told: dict[str, str] = {}

    def start(self) -> None:
        """From a thread, for ever."""
        threading.Thread(target=self._run, name="herald", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.turn()
            except StillframeError as error:
                logs.log().warning("claims and snapshots are told nothing", error=error.message)
            except Exception:  # the outermost loop of a thread
                logs.log().exception("defect")
            threading.Event().wait(EVERY_SECONDS)

    def turn(self) -> None:
        """Look once, and tell, if the lease is ours. Raises KubernetesUnavailable."""
        if not self._lease.is_mine:
            self._forget()
            return
        heard, answered = self._heard()
        for work_id in given_up(self._running.values(), heard, answered):
            del self._running[work_id]
        lost = [self._outcome(work) for work in unheard(self._running.values(), heard)]
        work = [item for item in (*heard, *lost) if item is not None]
        self._keep_only({item.id for item in work} | self._running.keys())
        left = [item for item in work if item.id not in self._ended]
        self._find([item for item in left if item.id not in self._about])
        told: dict[str, str] = {}
        for item in left:
            if item.id not in self._about:
                continue
            found = events(item, self._about[item.id])
            told |= {event.name: text for event in found if (text := self._tell(event)) is not None}
            if item.stage is Stage.RUNNING or any(told.get(event.name) != event.message for event in found):
                self._running[item.id] = item
            else:
                self._running.pop(item.id, None)
                self._ended.add(item.id)
        self._told = told

    def _keep_only(self, ids: set[str]) -> None:
        self._about = {key: value for key, value in self._about.items() if key in ids}
        self._looked = Counter({key: value for key, value in self._looked.items() if key in ids})
        self._ended &= ids

    def _heard(self) -> tuple[list[Work], list[str]]:
        """What nodes tell, and those that could be asked."""
        asked = progress.asked_for(list(self._running))
        answers = self._nodes.ask_all(self._nodes.ready(), progress.METHOD, asked, _CALL_SECONDS)
        return [work for answer in answers.values() for work in progress.unpack(answer)], list(answers)

    def _outcome(self, work: Work) -> Work | None:
        """What became of an upload of which its node says nothing: the repository knows. None while that is open."""
        handle = parse_handle("snapshot", work.id)
        try:
            known = self._repositories.show(handle.where, handle.id)
        except StillframeError as error:
            logs.log().info("an upload's end is not known", snapshot=work.id, error=error.message)
            return None
        if known is None or known["state"] == _DELETED:
            del self._running[work.id]
            return None
        if known["state"] == READY:
            return replace(work, stage=Stage.DONE, uploaded=known["uploaded_bytes"], requests=known["requests"])
        if known["state"] == _ABORTED:
            reason = StillframeError.from_message(known["error"] or {})
            return replace(work, stage=Stage.FAILED, message=reason.message, fix=reason.hint)
        return None

    def _find(self, work: list[Work]) -> None:
        """Whom works are told to. A VolumeSnapshotContent has no handle yet right after the cut: looked for again."""
        unknown = [item for item in work if self._looked[item.id] < _LOOKS]
        if not unknown:
            return
        self._looked.update(item.id for item in unknown)
        volumes = {item.claim_uid: item.handle for item in self._kube.volumes() if item.driver == DRIVER}
        claims = [replace(claim, volume=volumes.get(claim.subject.uid, "")) for claim in self._kube.claims()]
        uploads = any(item.kind is Kind.UPLOAD for item in unknown)
        self._about |= about(unknown, self._kube.snapshot_contents() if uploads else (), claims)

    def _tell(self, event: Event) -> str | None:
        """What its object has been told now; what cannot be written is tried again at the next look."""
        before = self._told.get(event.name)
        if before == event.message:
            return before
        try:
            self._kube.put_event(event, is_known=before is not None)
        except KubernetesUnavailable as error:
            logs.log().warning("an event was not written", reason=event.reason, error=error.message)
            return before
        return event.message
