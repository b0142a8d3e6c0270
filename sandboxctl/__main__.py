"""`python -m sandboxctl`."""

import sys

from sandboxctl.main import main

if __name__ == "__main__":
    sys.exit(main())
