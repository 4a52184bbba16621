"""One training loop for every training: objectives, optimiser, EMA, evaluation, checkpoints, processes.

A training is a `Trainer` with an `Objective` (what gets smaller) and an `Evaluator` (what is kept, and when to stop). Imports
nothing by itself: stages declare themselves with `config`, without loading torch.
"""
