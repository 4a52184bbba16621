"""The steps of the papers: one folder per stage, whose docstring says what it does."""

# Every stage, in the order in which data flows: a new stage is one line.
ORDER = (
    "simulate-prompts",
    "embed-prompts",
    "prompt-graph",
    "select-prompts",
    "generate-images",
    "import-images",
    "simulate-annotations",
    "load-annotations",
    "simulate-rich-feedback",
    "load-rich-feedback",
    "split-prompts",
    "build-pairs",
    "train-rm",
    "sweep-rm",
    "train-rahf",
    "score-images",
    "evaluate-rm",
    "choose-images",
    "oracle-truth",
    "simulate-captions",
    "refl",
    "finetune",
    "compare-generators",
    "measure-images",
)
