"""Score guidance: sampling that follows the gradient of a reward model's score.

config   its settings
sampler  the sampler, a generator like any other
"""
