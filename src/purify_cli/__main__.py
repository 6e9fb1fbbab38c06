"""`python -m purify_cli` is `purify`."""

from __future__ import annotations

import sys

from purify_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
