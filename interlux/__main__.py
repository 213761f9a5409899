"""`python -m interlux`: the command."""

import sys

from .cli import main

sys.exit(main())
