"""Pods in virtual machines of their own, run by QEMU."""
