"""The views of each kind of artifact, one module per group of kinds; see `irpipe.pipeline.view`."""
