"""A private containerd to try sandboxers with: harness, CRI client, images, tests."""
