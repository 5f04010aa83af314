"""`python -m toco_lab`."""

import sys

from toco_lab.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
