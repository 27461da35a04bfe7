"""CLIP's vocabulary under the names that transformers gives its special tokens."""

from aced.data import clip_bpe

START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the id of every token, and the merges in order; 49,408 and 48,894 of them."""
    tokens, merges = clip_bpe.vocabulary()
    return tokens | {START_OF_TEXT: clip_bpe.START_ID, END_OF_TEXT: clip_bpe.END_ID}, merges
