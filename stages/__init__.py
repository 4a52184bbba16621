"""The steps of the papers, in the order data flows.

simulate_prompts      a small pool of prompts, written offline, for the micro recipe
embed_prompts         prompts, cleaned, and their vectors
prompt_graph          each prompt's nearest others
select_prompts        the prompts to annotate
generate_images       images of those prompts, by one model or several
import_images         images, annotated or existing, checked, in Parquet
simulate_annotations  what people who see by a formula say of the micro world's images
load_annotations      anybody's annotations in one canonical form
split_prompts         prompts cut into train, validation and test without leaks
build_pairs           C(k, 2) preference pairs
train_rm              a reward model of those pairs
sweep_rm              reward models on a grid of settings, compared
score_images          scores of images, by the reward model and by others
evaluate_rm           scorers against people, each other and the truth
oracle_truth          the truth about the micro world's images, for evaluations alone
simulate_captions     real pictures of the micro world with captions
refl                  a generator tuned by the reward's gradient
finetune              a generator tuned on chosen images: RAFT, reward weighting, filtering
compare_generators    tuned generators against their base
"""
