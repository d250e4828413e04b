import sys

from ...cli import _discard_output
from . import main

try:
    main()
except ImportError as error:              # no compiler
    print(f"minigpt: {error}", file=sys.stderr)
    sys.exit(2)
except BrokenPipeError:                   # the reader of our output has seen enough
    _discard_output()
