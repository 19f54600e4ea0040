"""What `python -m lsgd_jax.train` does, beside the other scripts."""

import sys

from lsgd_jax.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
