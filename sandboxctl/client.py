"""A daemon's Sandbox API (`Controller`) as its client sees it. Loads gRPC: only for verbs that need it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from common.errors import Code, SandboxdError, error_of
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from sandboxctl.daemons import Daemon

CALL_TIMEOUT_S = 10.0


@contextlib.contextmanager
def controller_of(daemon: Daemon) -> Iterator[api_grpc.ControllerStub]:
    """Talk to a daemon; errors of its calls come out as errors of the project.

    :raise Unavailable: it does not run, or may not be talked to.
    """
    try:
        with grpc.insecure_channel(f"unix:{daemon.config.socket}") as channel:
            yield api_grpc.ControllerStub(channel)
    except grpc.RpcError as error:
        raise _explained(error, daemon) from None


def _explained(error: grpc.RpcError, daemon: Daemon) -> SandboxdError:
    code = error.code().value[0]
    if code == Code.UNAVAILABLE:
        daemon.require_reachable()
    return error_of(code, error.details() or error.code().name)
