"""sandboxctl: what an operator asks a running sandboxd.

sandboxctl list                  the pods of a type, from its records
sandboxctl inspect SANDBOX_ID    all that the daemon knows of a pod, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import grpc

from common.errors import SandboxdError
from common.records import read_record
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from sandboxers.isolation import load_isolation
from sandboxers.registry import RECORD_FILE, SandboxRecord

_CALL_TIMEOUT_S = 10.0


def main() -> int:
    """Run one command; exit code 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="sandboxctl", description="Ask a running sandboxd.")
    parser.add_argument(
        "--config",
        default="/etc/sandboxd/runc.yaml",
        metavar="FILE",
        help="the daemon's configuration, which says where it listens (default: %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the pods")
    inspect = commands.add_parser("inspect", help="show a pod")
    inspect.add_argument("sandbox_id", metavar="SANDBOX_ID")
    arguments = parser.parse_args()
    try:
        _, config = load_isolation(arguments.config)
        if arguments.command == "list":
            _list(config.state_dir)
        else:
            _inspect(config.socket, arguments.sandbox_id)
    except (SandboxdError, OSError) as error:
        print(f"sandboxctl: {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"sandboxctl: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    return 0


def _list(state_dir: str) -> None:
    for name in sorted(os.listdir(state_dir)):
        path = f"{state_dir}/{name}/{RECORD_FILE}"
        if not name.startswith(".") and os.path.exists(path):
            record, _ = read_record(path, SandboxRecord)
            pod = record.pod
            print(f"{pod['sandbox_id']}  {record.state:<24}  {pod['namespace']}/{pod['name']}")


def _inspect(socket_path: str, sandbox_id: str) -> None:
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        request = api.ControllerStatusRequest(sandbox_id=sandbox_id, verbose=True)
        status = api_grpc.ControllerStub(channel).Status(request, timeout=_CALL_TIMEOUT_S)
    print(json.dumps(json.loads(status.info["info"]), indent=2))


if __name__ == "__main__":
    sys.exit(main())
