"""Stands in for the agent: says on the host's announcement port that the guest is up, and then sleeps."""

import os
import signal
import socket
import sys

HOST_CID, ANNOUNCEMENT_PORT = 2, 1025


def main() -> None:
    print("guest is up", flush=True)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        try:
            connection.connect((HOST_CID, ANNOUNCEMENT_PORT))
            connection.sendall(f"{os.getpid()} {sys.version.split()[0]}\n".encode())
        except OSError as error:
            print(f"no announcement: {error}", flush=True)
    while True:
        signal.pause()


main()
