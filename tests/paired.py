"""The recipe of a small project with pairs, which conftest makes once for all tests of a module."""

from __future__ import annotations

RECIPE = """
recipe = "micro"
[simulate-prompts]
count = 120
[embed-prompts]
embedder = "lexical"
[prompt-graph]
k = 5
[select-prompts]
count = 40
[generate-images]
models = ["micro-generator"]
num_steps = 8
guidance_scale = 1.0
dtype = "float32"
batch_size = 64
[simulate-annotations]
[load-annotations]
label_source = "model"
[split-prompts]
[build-pairs]
[train-rm]
model = "micro-blip"
image_size = 32
optimizer.learning_rate = 3e-4
batch_pairs = 128
epochs = 2
freeze_rate = 0.0
[train-rm-grid]
like = "train-rm"
grid.optimizer.learning_rate = [1e-4, 1e-3]
[sweep-rm]
reads.reward-model = "train-rm-grid"
[score-images]
scorers = ["reward-model", "clip", "aesthetic", "blip", "random"]
clip_model = "micro-clip"
aesthetic_model = "micro-clip"
blip_model = "micro-blip"
[evaluate-rm]
truth = true
[oracle-truth]
[simulate-captions]
count = 40
[refl]
model = "micro-generator"
steps = 4
batch_size = 6
updates = "together"
num_steps = 6
first_late_step = 3
last_late_step = 5
reward_weight = 1.0
lora.rank = 4
optimizer.learning_rate = 1e-3
pretraining.batch_size = 4
evaluation.every = 2
evaluation.prompts = 4
evaluation.num_steps = 4
evaluation.captioned_images = 8
evaluation.kept_images = 2
evaluation.held_out_model = "micro-judge"
evaluation.similarity_model = "micro-clip"
training.dtype = "float32"
training.micro_batch_size = 6
[raft]
stage = "finetune"
like = "refl"
pool_prompts = 4
images_per_prompt = 3
num_steps = 4
guidance_scale = 1.0
pool_every = 2
[reward-weighted]
like = "raft"
select = "weighted"
pool_every = 0
[filter-tune]
like = "raft"
select = "best-and-worst"
pool_every = 0
alpha = 1.01
[choose-images]
[adapted]
stage = "finetune"
like = "refl"
source = "images"
[compare-generators]
reads.generator = "refl"
model = "micro-generator"
num_steps = 4
guidance_scale = 1.0
dtype = "float32"
batch_size = 16
clip_model = "micro-clip"
blip_model = "micro-blip"
truth = true
"""
