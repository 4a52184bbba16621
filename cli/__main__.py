"""`python -m irpipe.cli`, the same as `irpipe`."""

from irpipe.cli import main

main()
