"""Descriptors that outlive the daemon: given to the service manager, or to our supervisor, and taken back."""
