"""`python -m irpipe.pipeline.cli`: the first release's name of `python -m irpipe.cli`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("irpipe.cli", run_name="__main__")
