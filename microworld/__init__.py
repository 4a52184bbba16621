"""A tiny world with ground truth: a scene grammar, a renderer, an oracle, and simulated annotators."""
