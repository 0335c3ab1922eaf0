"""What stands around every call: domain errors become gRPC codes, defects become INTERNAL without their details."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import grpc

from driver.core.errors import Internal, StillframeError
from driver.node.errors import abort


class ErrorInterceptor(grpc.ServerInterceptor):
    """Unary calls only: CSI's SnapshotMetadata streams, and is not served."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        serve = handler.unary_unary

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return serve(request, context)
            except StillframeError as error:
                abort(context, error)
            except NotImplementedError:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{details.method} is not served: the capabilities say so")
            except Exception:  # the outermost frame of a call
                traceback.print_exc()
                abort(context, Internal(f"{details.method} met a defect", "the node plugin's log has the details"))

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
