"""Show all that is known of a pod, as its daemon tells it, or of a container, as JSON."""

from __future__ import annotations

import argparse
import json

from sandboxctl.daemons import find_daemons
from sandboxctl.output import print_json
from sandboxctl.pods import Container, find_pod_or_container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="POD|CONTAINER")


def run(arguments: argparse.Namespace) -> int:
    found = find_pod_or_container(find_daemons(arguments), arguments.id)
    if isinstance(found, Container):
        from sandboxctl.commands.ps import container_data

        print_json(container_data(found) | {"spec": found.spec})
        return 0
    from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
    from sandboxctl.client import CALL_TIMEOUT_S, controller_of

    request = api.ControllerStatusRequest(sandbox_id=found.id, verbose=True)
    with controller_of(found.daemon) as controller:
        status = controller.Status(request, timeout=CALL_TIMEOUT_S)
    print_json({"type": found.daemon.type.value, **json.loads(status.info["info"])})
    return 0
