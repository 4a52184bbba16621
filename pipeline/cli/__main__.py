"""`python -m irpipe.pipeline.cli`, the same as `irpipe`."""

from irpipe.pipeline.cli import main

main()
