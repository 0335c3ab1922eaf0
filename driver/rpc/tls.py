"""Mutual TLS between the controller plugin and the node plugins: who may be which side; certificates read anew. Any thread.

A node shows a certificate for `NODE_NAME` that may only be a server's, the controller one for `CONTROLLER_NAME` that may
only be a client's: what one side holds is worth nothing on the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

NODE_NAME: Final = "node.csi.stillframe.io"
CONTROLLER_NAME: Final = "controller.csi.stillframe.io"
CA_FILE: Final = "ca.crt"
CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
ANSWERED_BY: Final = "stillframe-node"
"""Trailing metadata of every answer of a node plugin on TCP: the node's name. An error without it is not the node's."""
_KEEPALIVE: Final = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
CLIENT_OPTIONS: Final = [
    *_KEEPALIVE, ("grpc.ssl_target_name_override", NODE_NAME), ("grpc.default_authority", NODE_NAME),
    ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000), ("grpc.enable_http_proxy", 0),
]  # fmt: skip
SERVER_OPTIONS: Final = [
    ("grpc.so_reuseport", 0), ("grpc.max_connection_age_ms", 3_600_000), ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000), ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]  # fmt: skip
"""A connection lasts an hour, calls in hand longer: then its peer shows its certificate again."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """One side's, in PEM: whom it trusts, and what it shows."""

    ca: bytes
    certificate: bytes
    key: bytes

    def is_whole(self) -> bool:
        """Whether the key is the certificate's, and there is someone to trust."""
        try:
            public = x509.load_pem_x509_certificates(self.certificate)[0].public_key()
            mine: Any = serialization.load_pem_private_key(self.key, None)
            x509.load_pem_x509_certificates(self.ca)
        except (ValueError, TypeError):
            return False
        return bool(mine.public_key() == public)

    def expires(self) -> datetime:
        """When the certificate ends, of certificates that are whole."""
        return x509.load_pem_x509_certificates(self.certificate)[0].not_valid_after_utc


Source = Callable[[], Certificates | None]
"""The certificates as they are now; None while there are none."""


def read(folder: Path) -> Certificates | None:
    """What ca.crt, tls.crt and tls.key in `folder` hold; None while they are not there, or do not belong together.

    kubelet exchanges the files of a secret at once, by the link `..data`: they are read from one such state.
    """
    state = Path(os.path.realpath(folder / "..data")) if (folder / "..data").exists() else folder
    try:
        found = Certificates(*((state / name).read_bytes() for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE)))
    except OSError:
        return None
    return found if found.is_whole() else None


def server_credentials(first: Certificates, source: Source) -> grpc.ServerCredentials:
    """Of a node. `source` is asked at each new connection; while it has none, the last ones are good."""
    last = first

    def configuration(of: Certificates) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(of.key, of.certificate)], of.ca)

    def fetch() -> grpc.ServerCertificateConfiguration:
        nonlocal last
        last = source() or last
        return configuration(last)

    return grpc.dynamic_ssl_server_credentials(configuration(first), fetch, require_client_authentication=True)


def channel(address: str, certificates: Certificates) -> grpc.Channel:
    """To a node plugin. Connects when it is used."""
    credentials = grpc.ssl_channel_credentials(certificates.ca, certificates.key, certificates.certificate)
    return grpc.secure_channel(address, credentials, CLIENT_OPTIONS)


class OnlyTheController(grpc.ServerInterceptor):
    """Refuses every call of a peer whose certificate is not the controller's; says which node answers."""

    def __init__(self, node: str) -> None:
        self._node = node

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return None
        serve = handler.unary_unary

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            if CONTROLLER_NAME.encode() not in context.auth_context().get("x509_subject_alternative_name", ()):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, f"your certificate is not for {CONTROLLER_NAME}")
            context.set_trailing_metadata(((ANSWERED_BY, self._node),))
            return serve(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
