"""`python -m lsgd_jax.report`."""

import sys

from lsgd_jax.report.command import main

if __name__ == "__main__":
    sys.exit(main(["-m lsgd_jax.report", *sys.argv[1:]]))
