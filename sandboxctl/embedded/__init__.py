"""The embedded engine: pods without containerd, through the two sockets that any engine uses (decision 12)."""
