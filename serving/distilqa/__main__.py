"""``python -m distilqa``: the command line."""

import sys

from distilqa.cli.main import main

sys.exit(main())
