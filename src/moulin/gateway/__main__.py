"""`python -m moulin.gateway`: one gateway process."""

import sys

from moulin.gateway.process import main

sys.exit(main())
