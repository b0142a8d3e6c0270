"""The daemons: the Controller, the composition root, the CLI, and one package per isolation type."""
