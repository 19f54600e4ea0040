"""`python -m lsgd_jax.compare`."""

import sys

from lsgd_jax.compare.command import main

if __name__ == "__main__":
    sys.exit(main(["-m lsgd_jax.compare", *sys.argv[1:]]))
