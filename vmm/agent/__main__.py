"""The program: notes when it began, and then loads the agent, which takes most of its start.

python -m vmm.agent                                        PID 1: over vsock, ends by resetting the machine
python -m vmm.agent --transport unix:///DIR --state DIR    elsewhere: in namespaces that its caller has made
"""

from __future__ import annotations

import sys
import time


def main() -> int:
    """Run the agent."""
    began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    from vmm.agent import agent

    return agent.main(sys.argv[1:], began_ns)


if __name__ == "__main__":
    sys.exit(main())
