"""Pods that live in the host's kernel, whatever runs their containers: namespaces held by descriptors, pod files,
shared memory, and a Task service on a socket of the pod's own."""
