import sys

try:
    from .cli import main

    code = main()
except KeyboardInterrupt:      # Ctrl-C while this was still being imported
    code = 130
sys.exit(code)
