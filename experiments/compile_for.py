"""What `python -m lsgd_jax.compile_for` does, beside the other scripts."""

import sys

from lsgd_jax.compile_for import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
