"""One training loop for every training: objectives, optimiser, EMA, evaluation, checkpoints, processes.

A training is an `Objective` (what gets smaller) and an `Evaluator` (what is kept and when to stop) in a `Trainer`. Imports nothing
by itself: `config` holds settings and is read where no torch may be loaded.
"""
