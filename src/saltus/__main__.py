"""``python -m saltus`` is ``saltus``; so is ``torchrun -m saltus``, in several processes."""

import sys

from saltus.cli import main

if __name__ == "__main__":
    sys.exit(main())
