import sys

from ...cli import _discard_output
from . import main

if len(sys.argv) > 1:
    print(f"minigpt: the demo takes no arguments, not {sys.argv[1]!r}", file=sys.stderr)
    sys.exit(2)
try:
    main()
except ImportError as error:              # no compiler
    print(f"minigpt: {error}", file=sys.stderr)
    sys.exit(2)
except BrokenPipeError:                   # the reader of our output has seen enough
    _discard_output()
