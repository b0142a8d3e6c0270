"""Hypervisors: a driver per program, each driving one virtual machine at a time; devices, no pods or containers."""
