"""Real tokenizers that know every word of the grammar as one token, and any other text by its letters or bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from irpipe.microworld.grammar import words

MAX_TOKENS = 32


def clip_tokenizer() -> Any:
    """A `CLIPTokenizer` with merges learnt the way byte-pair encoding would: word by word, left to right."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    vocabulary: dict[str, int] = {}
    for symbol in sorted(ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
        vocabulary[f"{symbol}</w>"] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in words():
        symbols = _split(word, merges)
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            vocabulary.setdefault(symbols[0] + symbols[1], len(vocabulary))
            symbols = _split(word, merges)
    end = "<|endoftext|>"
    for special in ("<|startoftext|>", end):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token=end)


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The symbols of a word after the merges so far, earliest merge first."""
    rank = {pair: place for place, pair in enumerate(merges)}
    symbols = [*word[:-1], f"{word[-1]}</w>"]
    while True:
        found = [(rank[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in rank]
        if not found:
            return symbols
        _, place = min(found)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def word_pieces(specials: tuple[str, ...]) -> dict[str, int]:
    """A WordPiece vocabulary: special tokens, letters, digits and the grammar's words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), ",", ".", *words()]
    return {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}


def token_ids(tokenizer: Any, texts: list[str]) -> tuple[Any, Any]:
    """(n, 32) ids and attention mask."""
    batch = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask
