"""Models come in whole or not at all: what libraries fill in by themselves is an error here.

transformers and diffusers give a weight that its file lacks a random value, and transformers makes a tokenizer without files one
that knows no words. What such a model says is wrong, and no function of its key.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from irpipe.pipeline.errors import ModelError

# Positions are counted anew by every version that no longer saves them.
_KNOWN_BUFFERS = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")
_LEAST_SHARE = 0.5  # of the rows of an embedding table that a vocabulary must have words for; tables are rounded up
_PREFIX = "module."  # of weights that were saved from a wrapper for several processes


def differences(missing: Collection[str], surplus: Collection[str], misshapen: Collection[str]) -> str:
    """What is wrong with weights, by their names; empty if nothing is."""
    parts = []
    for names, kind in ((missing, "lacks"), (surplus, "has the unknown"), (misshapen, "has another shape for")):
        if names:
            first = sorted(names)[:3]
            parts.append(f"{kind} {', '.join(first)}" + (f" and {len(names) - 3:,} more" if len(names) > 3 else ""))
    return "; it ".join(parts)


def refuse_differences(what: str, missing: Collection[str], surplus: Collection[str], misshapen: Collection[str]) -> None:
    """Refuse weights that are not exactly a model's.

    Raises:
        ModelError: names the missing, the unexpected, and those of another shape.
    """
    message = differences(missing, surplus, misshapen)
    if message:
        wrapped = surplus and all(name.startswith(_PREFIX) for name in surplus)
        raise ModelError(
            f"{what} {message}",
            expected="the weights of exactly this architecture",
            fix=f"save it without the wrapper that put {_PREFIX!r} before every name" if wrapped else None,
        )


@contextmanager
def whole_weights(what: str, unused: str = "") -> Iterator[None]:
    """Around loading by transformers, diffusers and what builds on them: every model must get exactly its weights.

    Both libraries tell what they filled in (`output_loading_info`) only to the one who calls them. A pipeline loads its parts,
    and sentence-transformers its network, so every model's `from_pretrained` is asked here.

    Args:
        what: the model's name in errors.
        unused: what begins the names of weights that are not used, a pattern; empty: all are.

    Raises:
        ModelError: a weight is missing, unknown, or of another shape.
    """
    from transformers import PreTrainedModel

    owners: list[Any] = [PreTrainedModel]
    if "diffusers" in sys.modules:  # whoever loads by it has imported it, and others need not wait for it
        from diffusers import ModelMixin

        owners.append(ModelMixin)
    plain = [owner.__dict__["from_pretrained"] for owner in owners]
    for owner, method in zip(owners, plain, strict=True):
        owner.from_pretrained = classmethod(_checked(method.__func__, what, re.compile(unused or r"(?!)")))
    try:
        yield
    finally:
        for owner, method in zip(owners, plain, strict=True):
            owner.from_pretrained = method


def _checked(load: Callable[..., Any], what: str, unused: re.Pattern[str]) -> Callable[..., Any]:
    def from_pretrained(cls: type, *given: Any, output_loading_info: bool = False, **named: Any) -> Any:
        # Weights of another shape are told as a list, too: the error of the libraries names none.
        model, info = load(cls, *given, **{**named, "output_loading_info": True, "ignore_mismatched_sizes": True})
        missing = [name for name in info["missing_keys"] if not unused.match(name)]
        surplus = [name for name in info["unexpected_keys"] if not _KNOWN_BUFFERS.search(name) and not unused.match(name)]
        misshapen = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
        refuse_differences(f"{what}: its {cls.__name__}", missing, surplus, misshapen)
        return (model, info) if output_loading_info else model

    return from_pretrained


def refuse_parts_elsewhere(folder: Path) -> None:
    """Refuse an index of shards that names a file outside of its folder: the model's digest would not count it.

    Raises:
        ModelError: names the index and the file.
    """
    for index in sorted(folder.rglob("*.index.json")):
        content = json.loads(index.read_text(encoding="utf-8"))
        names = set(content.get("weight_map", {}).values()) if isinstance(content, dict) else set()
        wrong = sorted(str(name) for name in names if not isinstance(name, str) or PurePath(name).name != name)
        if wrong:
            raise ModelError(f"{index.name} names a part outside of its folder: {wrong[0]}", where=str(index))


def check_vocabulary(tokenizer: Any, encoder: Any, what: str) -> None:
    """Whether a tokenizer knows words, and those of this text encoder.

    Args:
        encoder: a model of transformers with an embedding table of tokens.

    Raises:
        ModelError: it knows none, cannot put them together, or knows others than the encoder.
    """
    vocabulary = tokenizer.get_vocab()
    words = vocabulary.keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys()
    rows = int(encoder.get_input_embeddings().num_embeddings)
    expected = "the tokenizer's files: tokenizer.json, or vocab.txt, or vocab.json and merges.txt"
    if not words:
        raise ModelError(f"the tokenizer of {what} has no vocabulary: every text would be the same", expected=expected)
    if _lacks_merges(tokenizer, words):
        raise ModelError(
            f"the tokenizer of {what} has a vocabulary but no merges: texts would be cut to letters", expected=expected
        )
    used = {vocabulary[word] for word in words} | set(tokenizer("a a")["input_ids"])  # a mask token, for one, is not
    count = 1 + max(used)
    if count > rows or count < _LEAST_SHARE * rows:
        raise ModelError(
            f"the tokenizer of {what} has {count:,} tokens, and its text encoder embeddings for {rows:,}",
            expected="the tokenizer that the text encoder was trained with",
        )


def _lacks_merges(tokenizer: Any, words: Collection[str]) -> bool:
    """Whether byte-pair encoding has words of several letters that nothing makes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    return model.get("type") == "BPE" and not model.get("merges") and any(len(word.removesuffix("</w>")) > 1 for word in words)


def check_pipeline(pipeline: Any, what: str) -> None:
    """Whether every tokenizer of a diffusers pipeline has a vocabulary, that of the text encoder beside it.

    Raises:
        ModelError: names the part.
    """
    for name, tokenizer in pipeline.components.items():
        encoder = pipeline.components.get(name.replace("tokenizer", "text_encoder"))
        if name.startswith("tokenizer") and tokenizer is not None and hasattr(encoder, "get_input_embeddings"):
            check_vocabulary(tokenizer, encoder, f"{what}, {name},")
