"""QEMU: q35 machines, under KVM or emulated."""
