"""A tiny world with known truth: prompts from a scene grammar, and people whose taste is a formula."""
