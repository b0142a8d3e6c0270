"""Show all that a daemon knows of a pod, as JSON."""

from __future__ import annotations

import argparse
import json

from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from sandboxctl.client import CALL_TIMEOUT_S, controller_of
from sandboxctl.daemons import find_daemons
from sandboxctl.output import print_json
from sandboxctl.pods import find_pod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD")


def run(arguments: argparse.Namespace) -> int:
    pod = find_pod(find_daemons(arguments), arguments.pod)
    request = api.ControllerStatusRequest(sandbox_id=pod.id, verbose=True)
    with controller_of(pod.daemon) as controller:
        status = controller.Status(request, timeout=CALL_TIMEOUT_S)
    print_json(json.loads(status.info["info"]))
    return 0
