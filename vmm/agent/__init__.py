"""PID 1 of a guest: runs the containers of one pod and is told what the pod is by its host.

    __main__.py    start: mount, listen, announce, serve
    boot.py        what a bare kernel lacks: file systems, cgroups, the loopback device
    service.py     the Sandbox service of docs/agent-protocol.md
    bundle.py      what must be true in a guest before a container runs (`ContainerPreparer`)
    streams.py     connections that are standard streams or ports; stdio.py gives them to processes
    host.py        the connection to the host: announcement and events
    network.py     interfaces, addresses, routes, neighbours; netlink.py is the codec below it
    devices.py     disks, shares, CPUs and memory that come while the machine runs
    clock.py, identity.py   what must not be the same in two clones of a machine

Runs in the image's own interpreter, whose start is the pod's: it loads no ssl, structlog, yaml, logging or asyncio of
the standard library (`vmm/agent/stdlib`), which a test watches. The Task service is that of `common.task`.
"""
