"""The program sandboxd: keeps out of the process what a daemon never uses, then runs `sandboxers.daemon`.

asyncio loads ssl and hashlib loads OpenSSL, for features that a daemon on unix sockets does not have; both do
without. Threads of gRPC would each get a heap of their own. Together 3 MiB of a daemon that weighs 35. Only what
exports traces may have to speak TLS.
"""

from __future__ import annotations

import os
import sys

from sandboxers.tracing import is_wanted

if not is_wanted(os.environ):
    for _unused in ("ssl", "_hashlib", "_lzma", "_bz2"):
        sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]


def main() -> None:
    """Run the daemon, or its supervisor."""
    if "--supervise" in sys.argv[1:]:
        from common.process.supervisor import supervise

        supervise(sys.orig_argv)
        return
    if "--list-failpoints" in sys.argv[1:]:
        from common.failpoints import Failpoint

        print(*Failpoint, sep="\n")
        return
    from common.linux.heap import share_one_heap

    share_one_heap()
    from sandboxers import daemon

    daemon.main()


if __name__ == "__main__":
    main()
