"""CLIP's vocabulary: against the file that open_clip ships."""

import gzip
import hashlib
import pathlib

import foreign
import pytest

from aced.convert import tokenizer_build
from aced.data import clip_bpe


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_merges_and_ids_are_those_of_open_clips_file():
    foreign.open_clip()
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    with gzip.open(default_bpe()) as file:
        lines = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    vocabulary, merges = tokenizer_build.clip_vocabulary()
    assert merges == [tuple(line.split()) for line in lines]
    theirs = SimpleTokenizer().encoder
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert vocabulary == {special.get(token, token): i for token, i in theirs.items()}


def test_the_file_is_whole():
    content = pathlib.Path(clip_bpe.__file__).with_name("merges.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() in clip_bpe.__doc__
    vocabulary, merges = tokenizer_build.clip_vocabulary()
    assert (len(vocabulary), len(merges)) == (49408, 48894)
    assert sorted(vocabulary.values()) == list(range(49408))


@pytest.mark.parametrize("pair", [("i", "n"), ("t", "h")])
def test_first_merges(pair):
    vocabulary, merges = tokenizer_build.clip_vocabulary()
    assert pair in merges[:2]
    assert vocabulary["".join(pair)] == 512 + merges.index(pair)
