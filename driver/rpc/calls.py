"""What stands around every call: its line in the log, its figures, and its errors.

Domain errors become gRPC codes; what another plugin answered stays as it is; a defect becomes INTERNAL without its details,
which go to the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from driver.core.errors import Internal, StillframeError
from driver.rpc import logs
from driver.rpc.errors import bounded, code_of, text_of

_OURS: Final = "/csi."
Observe = Callable[[str, str, float], None]
"""(method, code, seconds) of a call that has ended."""


class CallInterceptor(grpc.ServerInterceptor):
    """CSI's unary calls; what asks for health passes. CSI's SnapshotMetadata streams, and is not served."""

    def __init__(self, observe: Observe) -> None:
        self._observe = observe

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None or not str(details.method).startswith(_OURS):
            return handler
        serve = handler.unary_unary

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            return self._call(str(details.method), serve, request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _call(self, method: str, serve: Callable[[Any, Any], Any], request: Any, context: grpc.ServicerContext) -> Any:
        logs.bind(method, request)
        started = time.perf_counter()
        answer, code, text = None, grpc.StatusCode.OK, ""
        try:
            answer = serve(request, context)
        except StillframeError as error:
            code, text = code_of(error), text_of(error)
        except grpc.RpcError as error:  # what a node answered goes on as it is
            code, text = error.code(), bounded(str(error.details()))
        except NotImplementedError:
            code, text = grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served: the capabilities say so"
        except Exception:  # the outermost frame of a call
            logs.log().exception("defect")
            defect = Internal(f"{method} met a defect", "the plugin's log has the details")
            code, text = code_of(defect), text_of(defect)
        seconds = time.perf_counter() - started
        self._observe(method.rpartition("/")[2], code.name, seconds)
        if answer is not None:
            logs.bind_answer(answer)
        self._log(request, answer, code, text, seconds)
        if code is not grpc.StatusCode.OK:
            context.abort(code, text)
        return answer

    @staticmethod
    def _log(request: Any, answer: Any, code: grpc.StatusCode, text: str, seconds: float) -> None:
        log = logs.log()
        told: dict[str, Any] = {"code": code.name, "seconds": round(seconds, 4)}
        if text:
            log.warning("call", **told, error=text)
        else:
            log.info("call", **told)
        log.debug("messages", asked=logs.strip(request), answered=None if answer is None else logs.strip(answer))
