"""A daemon's Sandbox API (`Controller`) as its client sees it. Loads gRPC: only for verbs that need it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from common.errors import Code, SandboxdError, Unavailable
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from sandboxctl.daemons import Daemon

CALL_TIMEOUT_S = 10.0


class RefusedCall(SandboxdError):
    """A call that a daemon has answered with an error."""


@contextlib.contextmanager
def controller_of(daemon: Daemon) -> Iterator[api_grpc.ControllerStub]:
    """Talk to a daemon; errors of its calls come out as errors of the project.

    :raise Unavailable: it does not run, or may not be talked to.
    :raise RefusedCall: it has refused a call.
    """
    try:
        with grpc.insecure_channel(f"unix:{daemon.config.socket}") as channel:
            yield api_grpc.ControllerStub(channel)
    except grpc.RpcError as error:
        raise explained(error, daemon) from None


def explained(error: grpc.RpcError, daemon: Daemon) -> SandboxdError:
    """Return what an operator can make use of."""
    code, details = error.code(), error.details()
    if code.value[0] == Code.UNAVAILABLE and not daemon.is_running():
        return Unavailable(
            f"the daemon of the type {daemon.type.value} does not run: nobody listens on {daemon.config.socket};"
            f" start it with `systemctl start sandboxd@{daemon.type.value}`"
        )
    return RefusedCall(f"{code.name}: {details}")
