"""Figures for Prometheus: counted as things happen, gathered when asked for, loaded only where they are wanted."""
