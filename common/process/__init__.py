"""Processes: the only package that spawns, signals and reaps. No threads, no fork of the daemon."""
