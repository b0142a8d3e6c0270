"""Run a pod without an engine, from an image on this machine.

IMAGE is an OCI layout, an archive of `docker save`, either with :NAME of an
image in it, or a directory that is a root file system, which is not written to.
With -f a pod of several containers is run, as a file of YAML describes it.

Exit codes: that of the container, or with several the first that is not 0;
125: the pod could not be run; 0 for -d once the pod runs; 128 + the signal
that has interrupted the start.
"""

from __future__ import annotations

import argparse
import os
import sys

from common.errors import InvalidArgument, NotFound, PermissionDenied, SandboxdError
from common.identifiers import check_identifier
from common.log import Format, Level
from common.log import configure as configure_log
from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.embedded.manifest import read_manifest
from sandboxctl.embedded.plan import HOST_NETWORK, NO_NETWORK, ContainerPlan, PodPlan
from sandboxctl.embedded.quantities import parse_cpus, parse_memory, parse_port, parse_volume
from sandboxers.isolation import IsolationType

_NOT_RUN = 125  # as docker-run(1) and podman-run(1) have it
_CONTAINER_NAME = "main"
_LONGEST_STOP_S = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of docker-run(1) that make sense here."""
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="what to run")
    parser.add_argument("command", nargs="*", metavar="-- CMD", help="instead of the image's own arguments")
    parser.add_argument("-f", "--file", metavar="FILE", help="a Kubernetes Pod, or its spec alone, in YAML")
    parser.add_argument(
        "--type",
        choices=[kind.value for kind in IsolationType],
        default=IsolationType.RUNC.value,
        help="how the pod is isolated (default: %(default)s)",
    )
    parser.add_argument("--name", default="", help="what the pod is called (default: its id)")
    parser.add_argument("--hostname", default="", help="default: the pod's id")
    parser.add_argument("-i", "--interactive", action="store_true", help="hand standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="print the pod's id and let it run on")
    parser.add_argument("--rm", action="store_true", help="remove the pod when it has ended")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-w", "--workdir", default="", metavar="PATH", help="where the command runs")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="by name or number")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's own")
    parser.add_argument("-v", "--volume", action="append", default=[], metavar="PATH:PATH[:ro]")
    parser.add_argument(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[IP:]PORT:PORT[/udp]",
        help="of this machine: of the pod",
    )
    parser.add_argument(
        "--network",
        default="",
        metavar="NETWORK",
        help="none, host, bridge, or a CNI configuration by file or name (default: none; bridge with -p)",
    )
    parser.add_argument("--memory", metavar="AMOUNT", help="at most so much, such as 256Mi")
    parser.add_argument("--cpus", metavar="NUMBER", help="at most so many, such as 0.5")
    parser.add_argument("--read-only", action="store_true", help="the root file system cannot be written to")
    parser.add_argument("--cap-add", action="append", default=[], metavar="CAPABILITY")
    parser.add_argument("--cap-drop", action="append", default=[], metavar="CAPABILITY")
    parser.add_argument(
        "--stop-timeout", type=float, default=10.0, metavar="SECONDS", help="from asking to end to killing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the pod, in the foreground unless it is to be detached."""
    configure_log(Level.ERROR, Format.CONSOLE)
    try:
        plan = _plan(arguments)
        if os.geteuid() != 0:
            raise PermissionDenied("'sandboxctl run' makes mounts, cgroups and networks: run it as root")
        # Late: whoever only wants to know the options need not wait for it.
        from sandboxctl.embedded.foreground import check_terminal
        from sandboxctl.embedded.pod_run import PodRun

        if arguments.detach:
            _check_detached(plan, arguments.rm)
        else:
            check_terminal(plan.all_containers)
        asked = PodRun(
            plan,
            IsolationType(arguments.type),
            _configured_daemon(arguments),
            is_detached=arguments.detach,
            is_removed=arguments.rm,
            as_json=arguments.as_json,
        )
        return asked.run()
    except (SandboxdError, OSError) as error:
        print(f"sandboxctl: {error}", file=sys.stderr)
        return _NOT_RUN


def _configured_daemon(arguments: argparse.Namespace) -> Daemon | None:
    try:
        daemons = find_daemons(arguments)
    except NotFound:
        if arguments.config_files:
            raise
        return None
    fitting = [daemon for daemon in daemons if daemon.type == arguments.type and not daemon.is_private]
    if arguments.config_files and not fitting:
        raise InvalidArgument(f"none of the configuration files is for the type {arguments.type}")
    return next(iter(sorted(fitting, key=lambda daemon: not daemon.is_running())), None)


def _plan(arguments: argparse.Namespace) -> PodPlan:
    if arguments.name:
        check_identifier("pod", arguments.name)
    if not 0 <= arguments.stop_timeout <= _LONGEST_STOP_S:
        raise InvalidArgument(f"--stop-timeout {arguments.stop_timeout}: expected a number of seconds")
    ports = tuple(parse_port(text) for text in arguments.publish)
    network = arguments.network or ("bridge" if ports else NO_NETWORK)
    if ports and network in (HOST_NETWORK, NO_NETWORK):
        why = (
            "all ports of the pod are this machine's"
            if network == HOST_NETWORK
            else "nothing reaches the pod"
        )
        raise InvalidArgument(f"-p does not go together with --network {network}: {why}")
    if arguments.file:
        if arguments.image:
            raise InvalidArgument("-f names the images in its file: leave IMAGE out")
        if ports:
            raise InvalidArgument("-p does not go together with -f: write hostPort into the file")
        plan = read_manifest(arguments.file, network)
        if plan.ports and plan.network == NO_NETWORK:
            raise InvalidArgument(
                f"{arguments.file}: ports need a network: add --network bridge or one of your own"
            )
        return plan
    if not arguments.image:
        raise InvalidArgument("say what to run: IMAGE, or -f FILE")
    container = ContainerPlan(
        name=_CONTAINER_NAME,
        image=arguments.image,
        command=(arguments.entrypoint,) if arguments.entrypoint else None,
        arguments=tuple(arguments.command) or None,
        environment=tuple(_variable(text) for text in arguments.env),
        working_directory=arguments.workdir,
        user=arguments.user,
        volumes=tuple(parse_volume(text) for text in arguments.volume),
        memory_bytes=parse_memory(arguments.memory, "--memory") if arguments.memory else 0,
        cpu_millis=parse_cpus(arguments.cpus, "--cpus") if arguments.cpus else 0,
        stdin=arguments.interactive,
        terminal=arguments.tty,
        read_only=arguments.read_only,
        capabilities_added=tuple(arguments.cap_add),
        capabilities_dropped=tuple(arguments.cap_drop),
    )
    return PodPlan(
        name=arguments.name,
        containers=(container,),
        network=network,
        ports=ports,
        hostname=arguments.hostname,
        stop_timeout_s=arguments.stop_timeout,
    )


def _check_detached(plan: PodPlan, remove: bool) -> None:
    if remove:
        raise InvalidArgument(
            "-d and --rm exclude each other: nobody stays to remove the pod; use 'sandboxctl rm' afterwards"
        )
    if any(container.stdin or container.terminal for container in plan.all_containers):
        raise InvalidArgument(
            "a detached pod has nobody at its input and terminal: leave -i and -t out, and use 'sandboxctl exec -it'"
        )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"-e {text[:60]!r} is not NAME=VALUE")
    return name, value
