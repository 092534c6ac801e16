"""``python -m distilqa``, and the command ``distilqa``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run a command. An interrupt while it is being loaded ends it as one while it runs does."""
    try:
        from distilqa.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
