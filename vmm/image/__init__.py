"""The kernels and the root file system of a guest: built from Debian packages, found and checked by their users."""
