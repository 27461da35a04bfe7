"""Words of the Penn Treebank tokenizer, as in the official evaluation of COCO's captions.

Stanford's tokenizer in Java, by pycocoevalcap: lower-cased, without punctuation.
"""

import importlib.util
import shutil
from collections.abc import Sequence

from aced.config import ConfigError

_LAST = "end"  # a last line that is not blank: the tokenizer drops blank lines at the end


def check() -> None:
    """Raises a ConfigError unless Java and pycocoevalcap are installed."""
    missing = []
    if importlib.util.find_spec("pycocoevalcap") is None:
        missing.append("pycocoevalcap (pip install -e '.[captions]')")
    if shutil.which("java") is None:
        missing.append("Java (such as Debian's default-jre-headless)")
    if missing:
        raise ConfigError(
            f"Words of the Penn Treebank need {' and '.join(missing)}; install it, or set "
            "penn_treebank of the evaluation to False."
        )


def words_of_all(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text.

    Raises:
        ConfigError: Java or pycocoevalcap is missing, or the tokenizer fails.
    """
    check()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # On one line each: the tokenizer separates texts by line breaks of any kind.
    lines = [" ".join(text.split()) for text in texts] + [_LAST]
    split = PTBTokenizer().tokenize({i: [{"caption": line}] for i, line in enumerate(lines)})
    if len(split) != len(lines) or split[len(texts)] != [_LAST]:
        raise ConfigError(
            f"The Penn Treebank tokenizer returned {len(split)} of {len(lines)} texts; run java "
            "alone to see whether it works, or set penn_treebank of the evaluation to False."
        )
    return [split[i][0].split() for i in range(len(texts))]
