"""``python -m distilqa``: the command line."""

import sys

from distilqa.cli import main

sys.exit(main())
