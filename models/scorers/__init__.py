"""Scorers of images: any reward model, CLIP, BLIP, aesthetic, chance, and those of other packages."""
