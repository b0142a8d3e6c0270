"""Pods as plain containers of the host kernel: namespaces held by files, containers run by an OCI runtime."""
