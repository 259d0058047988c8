"""`python -m hf_lpwd`, the same as `hf-lpwd`."""

import sys

from hf_lpwd.cli import main

sys.exit(main())
