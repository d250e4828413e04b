"""python -m minigpt.bench ...: the same as minigpt bench ..."""

import sys

from ..cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
