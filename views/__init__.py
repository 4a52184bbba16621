"""What people should see of each kind of artifact, one module a group of kinds; see `irpipe.pipeline.view`."""
