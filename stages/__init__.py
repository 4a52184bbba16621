"""The steps of the papers, in the order data flows.

simulate_prompts      a small pool of prompts, written offline, for the micro recipe
embed_prompts         prompts, cleaned, and their vectors
prompt_graph          each prompt's nearest others
select_prompts        the prompts to annotate
simulate_annotations  rankings and ratings of those prompts, written offline, for the micro recipe
load_annotations      anybody's annotations in one canonical form
import_images         images, annotated or existing, checked, in Parquet
build_pairs           C(k, 2) preference pairs, split without leaks
"""
