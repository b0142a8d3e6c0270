"""vhost-device-vsock: AF_VSOCK for the guest and a unix socket for the host, where the kernel has no vhost-vsock."""

from __future__ import annotations


def vsock_daemon_command(program: str, backend_path: str, host_path: str) -> list[str]:
    """Return the command line for one guest.

    The hypervisor connects to `backend_path`, who wants to reach the guest to `host_path` (`hvsock://`). It makes both
    sockets itself.
    """
    return [
        program,
        # Any: the guest is the only one that this daemon knows.
        "--guest-cid=3",
        f"--socket={backend_path}",
        f"--uds-path={host_path}",
        # What the guest may have in flight, hence how long a packet can be: longer ones come in several descriptors
        # from Linux 6.12 on, of which 0.3.0 takes the first alone (the stream stalls).
        "--tx-buffer-size=32768",
    ]
