"""What sandboxd costs, measured against stock shims in one run."""
