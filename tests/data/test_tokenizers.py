import concurrent.futures
import dataclasses
import pydoc_data.topics
import random
import unicodedata

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf

from aced.config import ConfigError, from_config, to_config
from aced.data import clip_bpe
from aced.data.shapes import scenes, tasks
from aced.data.tokenizers import Tokenizer, TokenizerConfig, get_tokenizer

# Made with open_clip 3.3.0's SimpleTokenizer (padding left out).
# fmt: off
CLIP_GOLDEN = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "": [49406, 49407],
    "A  Photo\n of a\tCAT ": [49406, 320, 1125, 539, 320, 2368, 49407],
    "It's 2026: 3.14% off!!! #sale @home": [
        49406, 585, 568, 273, 271, 273, 277, 281, 274, 269, 272, 275, 260, 1007, 995, 258,
        1690, 287, 1137, 49407,
    ],
    "café naïve über straße": [
        49406, 15304, 1097, 35689, 563, 6522, 1516, 1894, 127, 253, 324, 49407,
    ],
    "“curly” quotes &amp; &lt;b&gt;tags&lt;/b&gt;": [
        49406, 257, 20795, 257, 5808, 261, 283, 321, 285, 11606, 34308, 321, 285, 49407,
    ],
    "schÃ¶n mojibake": [49406, 844, 7255, 333, 617, 3252, 11878, 49407],
    "日本語 Русский": [
        49406, 39121, 44353, 34002, 508, 16370, 39729, 23669, 23669, 27152, 29503, 373, 49407,
    ],
    "😀 emoji 👨\u200d👩\u200d👧": [49406, 7334, 16327, 25023, 26304, 964, 356, 49407],
    "&amp;amp; doubled": [49406, 261, 24948, 49407],
    "ﬁne ligature ﬂy": [49406, 3797, 19915, 4490, 3228, 49407],
    "they'll we've I'm don't": [49406, 889, 1342, 649, 1200, 328, 880, 847, 713, 49407],
    "nul\x00 bell\x07 esc\x1b[31mred": [49406, 1156, 331, 3718, 3330, 736, 49407],
    "under_score snake_case e-mail": [
        49406, 1798, 318, 4431, 8798, 318, 2068, 324, 268, 2614, 49407,
    ],
    "Å ＡＢＣ full width": [49406, 127, 354, 5334, 1476, 23571, 49407],
    "&nbsp;x&#39;s": [49406, 343, 568, 49407],
    "they’ll 'd'm''re 'LL": [49406, 889, 1342, 1896, 880, 8445, 810, 1342, 49407],
    "2½٣² １２x3": [49406, 273, 33613, 149, 352, 41175, 272, 273, 343, 274, 49407],
    "नमस्ते สวัสดี שָׁלוֹם 👍🏽": [
        49406, 3124, 101, 48254, 28505, 19389, 27263, 25130, 37883, 30245, 14978, 37883, 38825,
        20278, 147, 358, 146, 116, 147, 479, 147, 250, 147, 499, 146, 373, 147, 507, 43722,
        49407,
    ],
    "\ufffd \ue000 \x85 \u2028 \u200b": [49406, 39802, 36288, 478, 959, 9844, 49407],
    "x" * 100: [49406, *[32035] * 24, 22819, 49407],
    "日" * 70: [49406, *[39121] * 69, 37156, 49407],
    # Special tokens that a caption spells out, where the pattern finds them; not transformers'.
    "<start_of_text>a<end_of_text>'s <|endoftext|>": [
        49406, 49406, 320, 49407, 568, 27, 347, 40786, 4160, 91, 285, 49407,
    ],
    "!<start_of_text>": [49406, 0, 283, 1572, 318, 539, 318, 4160, 285, 49407],
    # What open_clip's pattern does to letters that are others' forms.
    "<ſtart_of_text> 'ſ it'S": [
        49406, 27, 129, 123, 16707, 62, 684, 62, 18169, 285, 6, 129, 379, 585, 568, 49407,
    ],
    "a\u0345! \u1fb3 ﬅ": [49406, 320, 256, 157, 122, 367, 129, 123, 339, 49407],
}
# fmt: on
HARD_PARTS = (
    "'s ’ll 'S 'ſ İ Σ &amp;amp;lt; &#x27;s \u200d \x1b[31m \x1c \xa0 Ã¶ Ａ １ ½ ﬁ </w> Ġ "
    "<start_of_text> <end_of_text>! <|endoftext|>"
)


@pytest.fixture(scope="module")
def spm_path(tmp_path_factory):
    """A tiny sentencepiece model with the special ids of SigLIP's: pad 0, end 1, unknown 2."""
    folder = tmp_path_factory.mktemp("spm")
    data = scenes.Shapes(scenes.ShapesConfig())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([data[i]["texts"][0] for i in range(200)]),
        model_prefix=str(folder / "tiny"),
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return str(folder / "tiny.model")


def padded(ids, length, pad):
    return [*ids, *[pad] * (length - len(ids))]


@pytest.mark.parametrize("caption", CLIP_GOLDEN)
def test_clip_ids_are_open_clips(caption):
    ids = Tokenizer(TokenizerConfig(length=77))([caption])
    assert ids.dtype == np.int32
    assert ids.tolist() == [padded(CLIP_GOLDEN[caption], 77, 0)]


def many_captions(seed, number):
    """Of the embedded data, English texts, and random characters: a third of each."""
    rng = random.Random(seed)
    drawn = scenes.Shapes(scenes.ShapesConfig())
    words = " ".join(pydoc_data.topics.topics.values()).split()
    # Only letters of Unicode 3.2, since libraries differ in the newer ones that they support.
    category = unicodedata.ucd_3_2_0.category
    known = [char for char in map(chr, range(0x20000)) if category(char) != "Cn"]
    all_ = known + [chr(code) for code in range(0x1F300, 0x1FB00)]  # newer emoji are no letters
    hard = [*HARD_PARTS.split(" "), " "]
    for i in range(number // 3):
        yield scenes.describe(drawn.scene(i))
        start = rng.randrange(len(words) - 20)
        yield " ".join(words[start : start + rng.randint(1, 20)])
        script = rng.randrange(len(known) - 100)
        some = [*known[script : script + 100], *rng.choices(all_, k=20), *hard]
        yield "".join(rng.choices(some, k=rng.randint(1, 30))) + "."


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_clip_ids_of_many_captions_are_open_clips():
    theirs = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    captions = list(many_captions(0, 21_000))
    np.testing.assert_array_equal(
        Tokenizer(TokenizerConfig(length=77))(captions), theirs(captions, context_length=77).numpy()
    )


def test_clip_ids_are_the_same_in_many_threads():
    captions = list(many_captions(1, 300))
    alone = Tokenizer(TokenizerConfig(length=77))(captions)
    clip_bpe.load.cache_clear()  # the threads are the first to see these words
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(Tokenizer(TokenizerConfig(length=77)), [captions] * 8))
    for ids in found:
        np.testing.assert_array_equal(ids, alone)


def test_clip_truncation_keeps_the_end_of_text():
    ids = Tokenizer(TokenizerConfig(length=5))(["a photo of a cat", "cat"])
    assert ids.tolist() == [[49406, 320, 1125, 539, 49407], [49406, 2368, 49407, 0, 0]]


def test_clip_pad_id_is_a_setting():
    ids = Tokenizer(TokenizerConfig(length=5, pad_id=49407))(["cat"])
    assert ids.tolist() == [[49406, 2368, 49407, 49407, 49407]]


def test_texts_fit_if_they_are_not_cut(spm_path):
    """Counted with the end of text, where texts have one."""
    texts = ["red", "red red red", "red red red red", "red red red red red"]
    ended = get_tokenizer(TokenizerConfig(kind="shapes", length=4))
    assert ended.fit(texts) == [True, True, False, False]
    assert ended.fit([]) == []
    settings = {"kind": "sentencepiece", "path": spm_path, "eos": False}
    texts = ["one", "one two three", "a much longer text with many words in it"]
    sizes = (get_tokenizer(TokenizerConfig(length=64, **settings))(texts) != 1).sum(axis=1)
    short = get_tokenizer(TokenizerConfig(length=int(sizes[1]), **settings))
    assert short.fit(texts) == [True, True, False]


def test_no_texts_give_no_rows():
    assert Tokenizer(TokenizerConfig())([]).shape == (0, 64)


def test_sentencepiece_follows_siglip(spm_path):
    tokenizer = Tokenizer(TokenizerConfig(kind="sentencepiece", path=spm_path, length=16))
    oracle = sentencepiece.SentencePieceProcessor(model_file=spm_path)
    short, long = (
        "a Large RED star",
        "a large red star in the top left on a gray background",
    )
    expected = oracle.encode("a large red star")
    assert len(oracle.encode(long)) > 16
    assert tokenizer([short, long]).tolist() == [
        padded([*expected, 1], 16, 1),
        [*oracle.encode(long)[:15], 1],
    ]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (1, oracle.get_piece_size())


def test_sentencepiece_settings(spm_path):
    config = TokenizerConfig(
        kind="sentencepiece", path=spm_path, length=9, lower=False, eos=False, pad_id=0
    )
    oracle = sentencepiece.SentencePieceProcessor(model_file=spm_path)
    assert oracle.encode("Red star") != oracle.encode("red star")
    assert Tokenizer(config)(["Red star"]).tolist() == [padded(oracle.encode("Red star"), 9, 0)]


def test_canonicalize_deletes_punctuation_and_squeezes_space(spm_path):
    plain = TokenizerConfig(kind="sentencepiece", path=spm_path)
    canonical = TokenizerConfig(kind="sentencepiece", path=spm_path, canonicalize=True)
    messy, clean = "  A red,  star!\n(on 'black') ", "a red star on black"
    assert Tokenizer(canonical)([messy]).tolist() == Tokenizer(plain)([clean]).tolist()
    assert Tokenizer(plain)([messy]).tolist() != Tokenizer(plain)([clean]).tolist()


def save_hf(path, *, template, padding=False):
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "cat": 5, "Cat": 6}
    model = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token="[UNK]"))
    model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    if template:
        model.post_processor = hf.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if padding:
        model.enable_padding(pad_id=6, length=4)
        model.enable_truncation(2)
    model.save(str(path))
    return str(path)


@pytest.mark.parametrize("template", [True, False])
def test_hf_ends_once_with_the_files_end_token(tmp_path, template):
    path = save_hf(tmp_path / "tokenizer.json", template=template, padding=True)
    tokenizer = Tokenizer(TokenizerConfig(kind="hf", path=path, length=5))
    start = [2] if template else []
    assert tokenizer(["a Cat", "dog a a a a a"]).tolist() == [
        padded([*start, 4, 5, 3], 5, 6),
        [*[*start, 1, 4, 4, 4, 4][:4], 3],
    ]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (7, 3, 6)


def test_shapes_vocabulary_is_closed_and_needs_no_file():
    tokenizer = Tokenizer(TokenizerConfig(kind="shapes", length=16))
    names = {word: i + 3 for i, word in enumerate(sorted(scenes.WORDS))}
    expected = [names[word] for word in ("a", "red", "star", ",", "above")]
    ids = tokenizer(["A red star, above", "a zebra"])
    assert ids.tolist() == [padded([*expected, 1], 16, 0), padded([names["a"], 2, 1], 16, 0)]
    assert tokenizer.vocab_size == len(names) + 3


def test_every_text_of_the_embedded_data_is_in_its_vocabulary():
    tokenizer = Tokenizer(TokenizerConfig(kind="shapes"))
    data = scenes.Shapes(scenes.ShapesConfig(vague=0.3, duplicate=0.3, wrong=0.3))
    texts = [data[i]["texts"][0] for i in range(500)]
    prompts = [t.format(name) for t in scenes.TEMPLATES for name in scenes.CLASS_NAMES]
    ids = tokenizer(texts + prompts)
    assert not (ids == 2).any()
    assert ((ids == 1).sum(axis=1) == 1).all()
    assert (ids[:, -1] == 0).all(), "a caption was cut off at 64 words"


@pytest.mark.slow
def test_scenes_extend_the_vocabulary_of_captions_and_have_every_text_of_every_task():
    few, all_ = (Tokenizer(TokenizerConfig(kind=k, length=24)) for k in ("shapes", "scenes"))
    captions = [*map(scenes.describe, map(scenes.Shapes(scenes.ShapesConfig()).scene, range(200)))]
    words = [*scenes.WORDS, *scenes.VAGUE, *captions]
    np.testing.assert_array_equal(few(words), all_(words))
    assert few.vocab_size == 3 + len(scenes.WORDS)
    assert all_.vocab_size == few.vocab_size + len(tasks.WORDS)
    assert not set(scenes.WORDS) & set(tasks.WORDS)
    seen = set()
    for task, names in tasks.CLASS_NAMES.items():
        data = tasks.ShapesTask(scenes.ShapesConfig(task=task))
        ids = all_([*(data.example(i).text for i in range(2500)), *names])
        assert not (ids == 2).any()
        assert ((ids == 1).sum(axis=1) == 1).all()
        assert (ids[:, -1] == 0).all(), "a text was cut off at 24 words"
        seen |= set(ids.ravel().tolist())
    assert set(range(few.vocab_size, all_.vocab_size)) <= seen  # and no word is there for nothing
    assert all_.decode(all_(["Is there an orange star"])) == ["is there an orange star"]


def test_decoded_ids_are_the_cleaned_texts(spm_path, tmp_path):
    """Of every kind: cut short, filled up, ended early, and with ids that no text has."""
    path = save_hf(tmp_path / "tokenizer.json", template=True, padding=True)
    spm = {"kind": "sentencepiece", "path": spm_path, "length": 40}
    kinds = {
        "clip": ({}, " A Photo\n of a CAT ", "a photo of a cat"),
        "sentencepiece": (spm, "A red  star on the left", "a red star on the left"),
        "endless": (spm | {"eos": False, "pad_id": 0}, "a red star", "a red star"),
        "hf": ({"kind": "hf", "path": path, "length": 9, "lower": False}, "a Cat a", "a Cat a"),
        "shapes": ({"kind": "shapes"}, "A red star, above", "a red star , above"),
        "scenes": ({"kind": "scenes"}, "A red star, above", "a red star , above"),
    }
    for name, (settings, text, clean) in kinds.items():
        tokenizer = Tokenizer(TokenizerConfig(**settings))
        ids = tokenizer([text, ""])
        assert tokenizer.decode(ids) == [clean, ""], name
        assert tokenizer.decode(ids[:0]) == [], name
        beyond = np.insert(ids[:1], 2, tokenizer.vocab_size + 3, axis=1)
        assert tokenizer.decode(beyond) == [clean], name
        if tokenizer.config.eos:
            after = np.where(np.cumsum(ids == tokenizer.eos_id, axis=1) > 1, 5, ids)
            after[:, -1] = 5  # words after the end of text
            assert tokenizer.decode(after) == [clean, ""], name


def test_decoding_takes_no_word_for_padding():
    """0 pads CLIP's texts, and is one of its words."""
    tokenizer = Tokenizer(TokenizerConfig(length=5))
    assert tokenizer.decode(np.array([[49406, 2368, 256, 320, 0], [2368, 49407, 0, 0, 0]])) == [
        "cat ! a !",
        "cat",
    ]


def test_decoding_clip_shows_parts_of_characters_and_no_starts():
    tokenizer = Tokenizer(TokenizerConfig(length=5))
    ids = np.array([[49406, 320, 127, 320, 49407], [320, 49406, 2368, 49407, 0]])
    assert tokenizer.decode(ids) == ["a \ufffda", "a cat"]


def test_decoding_shows_unknown_words():
    tokenizer = Tokenizer(TokenizerConfig(kind="shapes", length=6))
    assert tokenizer.decode(tokenizer(["a zebra star"])) == ["a <unk> star"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sentencepiece"}, "tokenizer.path is empty"),
        ({"kind": "clip_bpe", "path": "x"}, "never read"),
        ({"length": 2}, "length must be at least 3, got 2"),
        ({"lower": False}, "tokenizer.lower is fixed"),
        ({"kind": "shapes", "eos_id": 3}, "tokenizer.eos_id is fixed"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**settings)


@pytest.mark.parametrize("kind", ["sentencepiece", "hf"])
def test_bad_files_are_named(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"nowhere.*does not exist"):
        Tokenizer(TokenizerConfig(kind=kind, path=str(tmp_path / "nowhere")))
    bad = tmp_path / "bad_file"
    bad.write_bytes(b"\xff no tokenizer")
    with pytest.raises(ConfigError, match="bad_file is not"):
        Tokenizer(TokenizerConfig(kind=kind, path=str(bad)))


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match=r"tokenizer.pad_id=49408 .* 49408 ids"):
        Tokenizer(TokenizerConfig(pad_id=49408))


def test_config_round_trip_and_cache():
    config = TokenizerConfig(kind="shapes", length=12)
    assert from_config(TokenizerConfig, to_config(config)) == config
    assert get_tokenizer(config) is get_tokenizer(TokenizerConfig(kind="shapes", length=12))


def test_open_clips_cleaning_before_another_vocabulary(spm_path):
    """ftfy, HTML entities, '_' to a space, punctuation: by hand."""
    plain = Tokenizer(TokenizerConfig(kind="sentencepiece", path=spm_path, length=40))
    settings = {"mend": True, "canonicalize": True, "underscore": "space"}
    mended = dataclasses.replace(plain.config, **settings)
    captions = ["A  Red_circle&amp;amp; “two”!", "schÃ¶n_mojibake", "__"]
    by_hand = ["a red circle two", "schön mojibake", ""]
    np.testing.assert_array_equal(Tokenizer(mended)(captions), plain(by_hand))
    deleted = dataclasses.replace(mended, underscore="delete")
    np.testing.assert_array_equal(Tokenizer(deleted)(["Red_circle"]), plain(["redcircle"]))
    assert not np.array_equal(plain(["&amp; red"]), plain(["& red"]))


def test_underscore_setting_needs_canonicalisation():
    with pytest.raises(ConfigError, match=r"is never read without tokenizer.canonicalize"):
        TokenizerConfig(underscore="space")
