"""The engine: recipes, keys, artifacts, plans and runs. It knows nothing of prompts, images or torch."""
