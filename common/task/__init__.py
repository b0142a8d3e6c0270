"""The Task service of containerd, once for all places where containers run.

    service.py      containerd.task.v3.Task: requests in, one table of containers behind it
    container.py    a container and its processes: states, exits, waiters
    backend.py      the interfaces that the service is assembled from
    oci_backend.py  a backend that drives an OCI runtime
    host_preparer.py  what must be true on the host before a backend runs
    stdio.py, terminal.py  a process's standard streams: the engine's FIFOs, or a pseudo terminal
    events.py       /tasks/* events on their way to the engine
    records.py      what is on disk about a container

It knows nothing of gRPC, pods' lives or hypervisors: a pod is to it a `PodView` and a directory.
"""
