"""What all tunings of a generator share: the network as tuning sees it, captioned images, evaluation and the stop rule.

A way of tuning is an `Objective` (`irpipe.models.training.objective`): one file in its stage's folder.
"""
