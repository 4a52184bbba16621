"""The published models that settings name by default, each pinned to a commit. It imports nothing, so that stages may."""

STABLE_DIFFUSION = "CompVis/stable-diffusion-v1-4@133a221b8aa7292a167afc5127cb63fb5005638b"
BLIP = "Salesforce/blip-itm-large-coco@fef05cafc05298067cbbca00b125749394a77a6f"
CLIP = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
VIT = "google/vit-base-patch16-384@2960116e809e2fca84146dbb240289aee7db4827"
VQA = "Salesforce/blip-vqa-base@787b3d35d57e49572baabd22884b3d5a05acf072"
T5 = "google-t5/t5-base@a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"

# The `check` of settings that name a model which scores images.
NO_GENERATOR = "irpipe.models.classes:no_generator"
