"""Pictures of the micro world as files, so that tests have images without a generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from irpipe.microworld.grammar import canonical, corrupt, parse, prompts
from irpipe.microworld.render import damage, render, to_pixels
from irpipe.pipeline.hashing import show_row_id
from irpipe.schemas.prompts import clean, prompt_id

PER_PROMPT = 4


def render_pool(folder: Path, count: int) -> Path:
    """Images of every prompt that `simulate-prompts` writes: `folder/<prompt id>/<number>.png`, each worse than the last."""
    rng = np.random.default_rng(0)
    for text in sorted({clean(text) for text in prompts(count, None, 0.3, 0.05, seed=0)}):
        below = folder / show_row_id(prompt_id(text))
        below.mkdir(parents=True)
        scene = canonical(parse(text)[0])
        for number in range(PER_PROMPT):
            image, placed, background = render(corrupt(scene, rng) if number > 1 else scene, rng)
            if number % 2:
                image, _ = damage(image, placed, background, rng)
            Image.fromarray(to_pixels(image)).save(below / f"{number}.png")
    return folder
