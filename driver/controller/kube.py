"""The Kubernetes API, as far as the controller needs it: the only module that knows the `kubernetes` package. Any thread.

Every request has time-outs and is made once; what fails is KubernetesUnavailable. Objects that we keep (secrets, config
maps, leases) are read with their version and written only over the version that was read.
"""

from __future__ import annotations

import base64
import functools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

from driver.controller.events import PROGRESS, Claim, Content, Event, claim_of, snapshot_of
from driver.controller.seen import Held, LeaseSeen, PodClaims, VolumeSeen, pod_claims, volume_seen
from driver.core import settings
from driver.core.errors import KubernetesUnavailable
from driver.rpc import logs
from driver.rpc.names import DRIVER

_SECONDS: Final = (3.0, 7.0)
"""To connect, to answer."""
_WATCH_SECONDS: Final = 60
"""A watch is begun anew so often, so that a dead connection is found."""
_AGAIN_SECONDS: Final = (0.2, 10.0)
_LABELS: Final = {"app.kubernetes.io/managed-by": "stillframe-controller"}
_NOT_ENDED: Final = "status.phase!=Succeeded,status.phase!=Failed"
_PAGE: Final = 500
_EVENT_MAX: Final = 1024
"""Characters of an event's message (core/v1 validation)."""
_OK: Final = 200
_CONFLICT: Final = 409
_NOT_FOUND: Final = 404
_GONE: Final = 410


class Kube:
    """One namespace's objects, and the cluster's nodes and PersistentVolumes. Raises KubernetesUnavailable."""

    def __init__(self, namespace: str, context: str | None = None) -> None:
        self.namespace = namespace
        self._connection = client.ApiClient(_configuration(context))
        self._core = client.CoreV1Api(self._connection)
        self._leases = client.CoordinationV1Api(self._connection)
        self._ended = threading.Event()

    # --- watching

    def stop(self) -> None:
        """Have watches end without a word, as soon as the API says anything or is gone."""
        self._ended.set()

    def watch_pods(self, selector: str, on_list: Callable[[list[Any]], None], on_event: Callable[[str, Any], None]) -> None:
        """Follow the namespace's pods in a thread of its own, until `stop`: all of them first, then each change."""
        listing = functools.partial(self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        self._follow("pods", listing, "V1Pod", on_list, on_event)

    def watch_nodes(self, on_list: Callable[[list[Any]], None], on_event: Callable[[str, Any], None]) -> None:
        """As `watch_pods`, of the cluster's nodes."""
        self._follow("nodes", self._core.list_node, "V1Node", on_list, on_event)

    def _follow(
        self, what: str, listing: Callable[..., Any], kind: str, on_list: Callable[[list[Any]], None],
        on_event: Callable[[str, Any], None],
    ) -> None:  # fmt: skip
        def run() -> None:
            wait, limit = _AGAIN_SECONDS
            is_lost = False
            while not self._ended.is_set():
                try:
                    found = listing(_request_timeout=_SECONDS)
                    on_list(found.items)
                    version, is_lost = found.metadata.resource_version, False
                    while not self._ended.is_set():
                        version = self._stream(listing, kind, version, on_event)
                        wait = _AGAIN_SECONDS[0]
                except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                    is_forgotten = getattr(error, "status", None) == _GONE  # the version: list anew
                    if not is_lost and not is_forgotten and not self._ended.is_set():
                        logs.log().warning("the watch was broken off", watched=what, error=_text(error))
                        is_lost = True
                except Exception:  # the outermost loop of a thread without which nothing more is known
                    logs.log().exception("defect", watched=what)
                self._ended.wait(wait)
                wait = min(2 * wait, limit)

        threading.Thread(target=run, name=f"watch-{what}", daemon=True).start()

    @staticmethod
    def _stream(listing: Callable[..., Any], kind: str, version: str, on_event: Callable[[str, Any], None]) -> str:
        """One watch, to its end: the version from which the next one goes on."""
        stream: Any = watch.Watch(return_type=kind)  # type: ignore[no-untyped-call]
        following = stream.stream(
            listing, resource_version=version, timeout_seconds=_WATCH_SECONDS, allow_watch_bookmarks=True,
            _request_timeout=(_SECONDS[0], _WATCH_SECONDS + _SECONDS[1]),
        )  # fmt: skip
        for event in following:
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                on_event(event["type"], event["object"])
        return str(stream.resource_version or version)

    # --- asking

    def node_exists(self, name: str) -> bool:
        """Whether there is a Node object."""
        return _asked(f"read node {name!r}", self._core.read_node, name) is not None

    def volumes(self) -> list[VolumeSeen]:
        """All PersistentVolumes of CSI drivers, in pages."""
        pages = self._pages("list PersistentVolumes", self._core.list_persistent_volume)
        return [seen for item in pages if (seen := volume_seen(item)) is not None]

    def pods_with_claims(self) -> list[PodClaims]:
        """All pods of the cluster that are on a node and have not ended, in pages."""
        pages = self._pages("list pods", self._core.list_pod_for_all_namespaces, field_selector=_NOT_ENDED)
        return [seen for item in pages if (seen := pod_claims(item)) is not None]

    def claims(self) -> list[Claim]:
        """All PersistentVolumeClaims of the cluster, in pages; their volumes are not looked up."""
        pages = self._pages("list PersistentVolumeClaims", self._core.list_persistent_volume_claim_for_all_namespaces)
        return [claim_of(item.metadata.namespace, item.metadata.name, item.metadata.uid) for item in pages]

    def snapshot_contents(self) -> list[Content]:
        """The VolumeSnapshotContents of this driver that have a snapshot; none if the cluster has no such objects."""
        found = []
        for item in self.every("/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"):
            of, handle = item["spec"]["volumeSnapshotRef"], item.get("status", {}).get("snapshotHandle")
            if item["spec"]["driver"] == DRIVER and handle:
                found.append(Content(handle, snapshot_of(of["namespace"], of["name"], of.get("uid", ""))))
        return found

    def read(self, path: str, **query: str) -> dict[str, Any] | None:
        """What GET of a path of the API answers, as it is; None if there is none."""
        with _translated(f"read {path}"):
            asked = self._connection.param_serialize(
                "GET", path, query_params=list(query.items()), header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )  # fmt: skip
            answer: Any = self._connection.call_api(*asked, _request_timeout=_SECONDS)
            answer.read()
            if answer.status == _NOT_FOUND:
                return None
            if answer.status != _OK:
                raise ApiException(http_resp=answer)
            return dict(json.loads(answer.data))

    def every(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """The items of a list, in pages; none if the API has no such kind."""
        token = None
        while token != "":
            page = self.read(path, limit=str(_PAGE), **({"continue": token} if token else {}), **query)
            if page is None:
                return
            yield from page["items"]
            token = page["metadata"].get("continue", "")

    @staticmethod
    def _pages(what: str, call: Callable[..., Any], **options: Any) -> Iterator[Any]:
        token: str | None = None
        while token != "":
            page = _asked(what, call, limit=_PAGE, _continue=token or "", **options)
            if page is None:
                return
            yield from page.items
            token = page.metadata._continue or ""

    # --- telling

    def warn(self, kind: str, namespace: str, name: str, uid: str, reason: str, message: str) -> None:
        """An event about an object of the core API."""
        now = datetime.now(UTC)
        event = client.CoreV1Event(
            metadata=client.V1ObjectMeta(generate_name=f"{name}.", namespace=namespace),
            involved_object=client.V1ObjectReference(
                api_version="v1", kind=kind, namespace=namespace, name=name, uid=uid or None
            ),
            reason=reason, message=message[:_EVENT_MAX], type="Warning", first_timestamp=now, last_timestamp=now, count=1,
            source=client.V1EventSource(component=DRIVER), reporting_component=DRIVER, reporting_instance=self.namespace,
        )  # fmt: skip
        _asked(f"write an event of {kind} {namespace}/{name}", self._core.create_namespaced_event, namespace, event)

    def put_event(self, event: Event, *, is_known: bool) -> None:
        """Write an event over the one of its name. `is_known`: there probably is one; events go away after an hour. Nothing
        happens where its namespace is gone, and so whom it is about."""
        about, now = event.about, datetime.now(UTC)
        what = f"write an event of {about.kind} {about.namespace}/{about.name}"
        notes = {PROGRESS: event.progress} if event.progress else None
        kind, message = "Warning" if event.is_warning else "Normal", event.message[:_EVENT_MAX]
        change = {"message": message, "lastTimestamp": now.isoformat(), "metadata": {"annotations": notes}}
        made = client.CoreV1Event(
            metadata=client.V1ObjectMeta(name=event.name, namespace=about.namespace, annotations=notes),
            involved_object=client.V1ObjectReference(
                api_version=about.api_version, kind=about.kind, namespace=about.namespace, name=about.name, uid=about.uid
            ),
            reason=event.reason, message=message, type=kind, first_timestamp=now, last_timestamp=now, count=1,
            source=client.V1EventSource(component=DRIVER), reporting_component=DRIVER, reporting_instance=self.namespace,
        )  # fmt: skip
        if is_known and _asked(what, self._core.patch_namespaced_event, event.name, about.namespace, change) is not None:
            return
        with _translated(what):
            try:
                self._core.create_namespaced_event(about.namespace, made, _request_timeout=_SECONDS)
            except ApiException as error:
                if error.status == _NOT_FOUND:
                    return
                if error.status != _CONFLICT:
                    raise
                self._core.patch_namespaced_event(event.name, about.namespace, change, _request_timeout=_SECONDS)

    def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Delete that very pod, with its own grace. Nothing happens if it is gone, or another one has its name."""
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid))
        with _translated(f"delete pod {namespace}/{name}"):
            try:
                self._core.delete_namespaced_pod(name, namespace, body=options, _request_timeout=_SECONDS)
            except ApiException as error:
                if error.status not in (_CONFLICT, _NOT_FOUND):
                    raise

    # --- keeping

    def secret(self, name: str) -> Held | None:
        """None if there is none."""
        found = _asked(f"read secret {name!r}", self._core.read_namespaced_secret, name, self.namespace)
        if found is None:
            return None
        content = {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
        return Held(content, found.metadata.resource_version)

    def put_secret(self, name: str, content: dict[str, bytes], version: str | None) -> bool:
        """Make it (`version` None), or write it over that version. False if somebody was faster."""
        encoded: dict[str, bytes | str] = {key: base64.b64encode(value).decode() for key, value in content.items()}
        body = client.V1Secret(metadata=self._metadata(name, version), data=encoded, type="kubernetes.io/tls")
        make, replace = self._core.create_namespaced_secret, self._core.replace_namespaced_secret
        return _put(f"write secret {name!r}", make, replace, name, self.namespace, body) is not None

    def config_map(self, name: str) -> Held | None:
        """None if there is none."""
        found = _asked(f"read config map {name!r}", self._core.read_namespaced_config_map, name, self.namespace)
        if found is None:
            return None
        return Held({key: value.encode() for key, value in (found.data or {}).items()}, found.metadata.resource_version)

    def put_config_map(self, name: str, content: dict[str, bytes], version: str | None) -> bool:
        """As `put_secret`."""
        decoded = {key: value.decode() for key, value in content.items()}
        body = client.V1ConfigMap(metadata=self._metadata(name, version), data=decoded)
        make, replace = self._core.create_namespaced_config_map, self._core.replace_namespaced_config_map
        return _put(f"write config map {name!r}", make, replace, name, self.namespace, body) is not None

    def lease(self, name: str) -> LeaseSeen | None:
        """None if there is none."""
        found = _asked(f"read lease {name!r}", self._leases.read_namespaced_lease, name, self.namespace)
        if found is None:
            return None
        spec = found.spec or client.V1LeaseSpec()
        version = found.metadata.resource_version
        return LeaseSeen(spec.holder_identity or "", spec.lease_duration_seconds or 0, version, spec.renew_time)

    def put_lease(self, name: str, holder: str, lasts_seconds: int, version: str | None) -> str | None:
        """As `put_secret`; the new version, None if somebody was faster."""
        spec = client.V1LeaseSpec(
            holder_identity=holder, lease_duration_seconds=lasts_seconds, renew_time=datetime.now(UTC)
        )
        body = client.V1Lease(metadata=self._metadata(name, version), spec=spec)
        make, replace = self._leases.create_namespaced_lease, self._leases.replace_namespaced_lease
        return _put(f"write lease {name!r}", make, replace, name, self.namespace, body)

    def _metadata(self, name: str, version: str | None) -> Any:
        return client.V1ObjectMeta(name=name, namespace=self.namespace, resource_version=version, labels=_LABELS)


def namespace_of(context: str | None = None) -> str:
    """The namespace that the configuration names for a context, or for the current one; else `default`."""
    loader: Any = config
    with _translated("read the configuration of the Kubernetes client"):
        known, current = loader.list_kube_config_contexts(settings.environment("KUBECONFIG"))
    found = [item for item in known if item["name"] == context] if context else [current]
    return str(found[0]["context"].get("namespace") or "default") if found else "default"


def _configuration(context: str | None) -> client.Configuration:
    """Of $KUBECONFIG; without it that of the pod that this is, or of ~/.kube/config. `context` None: the current one."""
    made = client.Configuration()
    made.retries = False  # three more by default, each with its own time-outs; callers ask again themselves
    loader: Any = config  # its functions have no types
    path = settings.environment("KUBECONFIG")
    with _translated("read the configuration of the Kubernetes client"):
        if path is None and settings.is_in_a_pod():
            loader.load_incluster_config(client_configuration=made)
        else:
            loader.load_kube_config(config_file=path, context=context, client_configuration=made)
    return made


def _asked(what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The object; None if there is none."""
    with _translated(what):
        try:
            return call(*arguments, **options, _request_timeout=_SECONDS)
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise


def _put(
    what: str, make: Callable[..., Any], replace: Callable[..., Any], name: str, namespace: str, body: Any
) -> str | None:
    """The new version; None if somebody was faster."""
    with _translated(what):
        try:
            if body.metadata.resource_version is None:
                made = make(namespace, body, _request_timeout=_SECONDS)
            else:
                made = replace(name, namespace, body, _request_timeout=_SECONDS)
        except ApiException as error:
            if error.status in (_CONFLICT, _NOT_FOUND):
                return None
            raise
    return str(made.metadata.resource_version)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (ApiException, urllib3.exceptions.HTTPError, OSError, config.ConfigException) as error:
        raise KubernetesUnavailable(
            f"cannot {what}: {_text(error)}",
            "is the API server up, and may this account do that? A service account needs the chart's roles",
        ) from error


def _text(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return str(error) or type(error).__name__
