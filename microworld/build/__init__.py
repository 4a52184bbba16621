"""Trains the models that the micro world ships: `python -m irpipe.microworld.build FOLDER`."""
