"""A user's own package with a reward model, a scorer and a tuning; see tests/test_guests.py."""

from __future__ import annotations

PACKAGE = {
    "__init__.py": "",
    "model.py": """
        import json
        from pathlib import Path

        import torch
        from safetensors.torch import load_file, save_file
        from torch import nn

        from irpipe.models.noise import Noise
        from irpipe.models.reward.preprocessing import Preprocessing
        from irpipe.schemas.reward_model import ScoreCard

        COLOURS = ("red", "green", "blue")


        class ColourReward(nn.Module):
            '''Likes the colours that a prompt names: a weight for every pair of named and seen colour.'''

            format = "colours"

            def __init__(self, card=None):
                super().__init__()
                self.lower = nn.Linear(3, 3, bias=False)
                self.upper = nn.Bilinear(3, 3, 1)
                self.preprocess = Preprocessing(16, (0.5,) * 3, (0.5,) * 3)
                self.card = card or ScoreCard(0.0, 1.0, "nothing yet")
                self.noise = Noise()

            @property
            def device(self):
                return self.lower.weight.device

            @classmethod
            def from_pretrained(cls, location):
                folder = Path(location)
                model = cls(ScoreCard(**json.loads((folder / "score_card.json").read_text())))
                model.load_state_dict(load_file(folder / "model.safetensors"))
                return model.eval()

            def encode_texts(self, prompts):
                rows = [[float(colour in prompt) for colour in COLOURS] for prompt in prompts]
                return {"named": torch.tensor(rows, device=self.device)}

            def forward(self, pixels, texts):
                return self.upper(texts["named"], self.lower(pixels.mean(dim=(2, 3))))[:, 0]

            def freeze(self, rate):
                self.requires_grad_(True)
                if rate >= 0.5:
                    self.lower.requires_grad_(False)

            def checkpoint_activations(self):
                pass

            def save_pretrained(self, folder):
                from dataclasses import asdict

                folder = Path(folder)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "config.json").write_text(json.dumps({"format": self.format}))
                (folder / "score_card.json").write_text(json.dumps(asdict(self.card)))
                save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")
    """,
    "scorer.py": """
        class Redness:
            '''How red a picture is, whatever was asked for.'''

            image_size = None
            card = None

            def __call__(self, prompts, pictures):
                return [float(picture[..., 0].mean()) / 255 for picture in pictures]
    """,
    "nudge/__init__.py": """
        from irpipe.models.published import STABLE_DIFFUSION
        from irpipe.pipeline.stage import Config, Stage, setting
        class NudgeConfig(Config):
            model: str = setting(STABLE_DIFFUSION, role="model", meaning="The generator to nudge.")
            size: float = setting(1e-3, meaning="By how much its weights grow.")
        STAGE = Stage(name="nudge", version=1, writes="generator", config=NudgeConfig, run="guest.nudge.run:run",
                      determinism="numeric")
    """,
    "nudge/run.py": """
        import torch
        from irpipe.models.generators import Sampling, load
        from irpipe.pipeline.stage import Report, Rows
        from irpipe.schemas.generator import GeneratorCard

        def run(config, inputs, out, context):
            model = context.models["model"][0]
            generator = load(model, Sampling(1, 1.0, "own", None, None, "", "float32", True), "cpu")
            with torch.no_grad():
                for value in generator.pipeline.unet.parameters():
                    value.mul_(1 + config.size)
            generator.pipeline.save_pretrained(out / "pipeline", safe_serialization=True)
            GeneratorCard(model.name, model.revision, "nudge", "unet", 1, 1, "", {}).write(out)
            return Report(Rows(1, 1, 0))
    """,
}

POINTS = {
    "irpipe.stages": {"nudge": "guest.nudge:STAGE"},
    "irpipe.reward_models": {"colours": "guest.model:ColourReward"},
    "irpipe.scorers": {"redness": "guest.scorer:Redness"},
}
