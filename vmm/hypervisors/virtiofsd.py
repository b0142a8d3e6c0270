"""virtiofsd: a directory of the host as a file system of the guest, a process per share."""

from __future__ import annotations


def virtiofsd_command(program: str, directory: str, listener_fd: int) -> list[str]:
    """Return the command line for a share whose vhost-user socket listens at a descriptor that is passed on."""
    return [
        program,
        f"--shared-dir={directory}",
        # Listening already: the hypervisor may connect before the program has come up.
        f"--fd={listener_fd}",
        # Its own mount, PID and network namespaces, and the directory as root. What is mounted below the directory
        # later still appears, as mounts of the host propagate there.
        "--sandbox=namespace",
        # Without it two files of different mounts below could have one inode number in the guest.
        "--announce-submounts",
        # The guest sees what the host changes (a ConfigMap) within a second.
        "--cache=auto",
        # File handles would need CAP_DAC_READ_SEARCH, with which a guest that takes over the daemon reads all files.
        "--inode-file-handles=never",
        # Images and volumes carry capabilities and user attributes.
        "--xattr",
        "--log-level=warn",
    ]
