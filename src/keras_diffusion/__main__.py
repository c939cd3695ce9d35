"""`python -m keras_diffusion` is `keras-diffusion`."""

import sys

from keras_diffusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
