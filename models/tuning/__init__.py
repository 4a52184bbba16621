"""What all tunings of a generator share: the network as tuning sees it, the loop, real pairs, monitors and the stop rule.

A way of tuning is an `Objective` (`irpipe.models.tuning.loop`): one file in its stage's folder.
"""
