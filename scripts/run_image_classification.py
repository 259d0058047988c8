"""`hf-lpwd train` as a script for `accelerate launch`; see the README."""

import sys

from hf_lpwd.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:], prog="run_image_classification.py"))
