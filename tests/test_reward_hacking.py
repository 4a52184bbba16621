"""A preference classifier of the CLIP kind as ReFL's reward, without the pre-training loss: hacked, then stopped by the rule."""

from __future__ import annotations

import pytest

RECIPE = """
recipe = "hacked"
[simulate-prompts]
count = 600
[embed-prompts]
embedder = "lexical"
[prompt-graph]
k = 10
[select-prompts]
count = 120
[generate-images]
models = ["micro-generator"]
num_steps = 15
guidance_scale = 1.0
dtype = "float32"
batch_size = 64
[simulate-annotations]
records = "choices"
annotators_per_prompt = 8
[load-annotations]
label_source = "model"
[split-prompts]
near_duplicate = "off"
validation_share = 0.2
test_share = 0.3
[build-pairs]
[train-rm]
model = "micro-clip"
loss = "choice"
image_size = 32
batch_pairs = 120
epochs = 3
freeze = "layers"
image_layers = 2
text_layers = 2
optimizer.learning_rate = 1e-3
optimizer.weight_decay = 3.1e-3
optimizer.decay_vectors = false
optimizer.max_grad_norm = 1.0
[simulate-captions]
count = 200
[refl]
model = "micro-generator"
trainable = "unet"
steps = 40
batch_size = 32
reward_weight = 1.0
pretraining.weight = 0.0
noise_samples = 3
num_steps = 20
first_late_step = 14
last_late_step = 19
refresh_every = 40
rollouts = 240
optimizer.learning_rate = 7e-5
optimizer.warmup_steps = 10
optimizer.adam_beta2 = 0.99
optimizer.ema_decay = 0.95
evaluation.every = 4
evaluation.images = 8
evaluation.held_out_model = "micro-judge"
evaluation.similarity_model = "micro-clip"
training.dtype = "float32"
training.micro_batch_size = 16
training.sample_batch_size = 64
[let-on]
like = "refl"
steps = 24
evaluation.every = 8
evaluation.early_stopping = "log"
[compare-generators]
model = "micro-generator"
num_steps = 20
guidance_scale = 1.0
dtype = "float32"
batch_size = 64
images_per_prompt = 4
scorers = ["reward-model", "clip"]
clip_model = "micro-clip"
truth = true
reads.generator = ["refl", "let-on"]
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stop_rule_ends_tuning_by_hps_and_keeps_its_peak(project):
    """What it keeps is better than the base by the oracle; what would have come of it shows another scene than the prompt's."""
    project.recipe(RECIPE)
    refl = project.last("refl")["metrics"]
    assert 0 < refl["kept_step"] < refl["steps"] < 40
    assert refl["stopped_for"].startswith("reward hacking: the trained reward rose")
    gains = project.last("compare-generators")["metrics"]
    kept, let_on = (
        {what: float(gains[f"{what} of {name}"].split()[0]) for what in ("oracle", "alignment")} for name in ("refl", "let-on")
    )
    assert kept["oracle"] > 0 and kept["alignment"] > -0.01
    assert let_on["oracle"] < -0.05 and let_on["alignment"] < -0.1
