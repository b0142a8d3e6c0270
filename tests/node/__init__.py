"""A Debian node in a virtual machine, whose processor is emulated and can virtualize nonetheless."""

import os

ON_NODE = os.environ.get("SANDBOXD_NODE", "") != ""
"""Whether this runs on one: everything is there that was brought, and nothing can be installed, fetched or built."""

SLOWER = 5 if ON_NODE else 1
"""How many times as long as elsewhere whatever is waited for may take: it is emulated."""

BOOTS = 2 if ON_NODE else 1
"""How often a machine may be booted until its guest is there. On a node, whose virtualization is emulated, one may
stand still before, with whatever image: about one in thirty did under QEMU 7.2, and it happens under 10.0, too."""
