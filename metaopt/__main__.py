"""`python -m metaopt` is the command line."""

import sys

from metaopt.cli import main

sys.exit(main())
