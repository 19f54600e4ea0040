"""What `python -m lsgd_jax.compare` does, beside the other scripts."""

import sys

from lsgd_jax.compare.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
