"""Sets without a sentence in common, which new data do not reshuffle."""

import hashlib
import unicodedata
from collections.abc import Mapping


def sentence_key(text: str) -> str:
    """What two sentences share if they are the same one for a listener.

    Accents, apostrophes and word boundaries do not count, so that a sentence
    and its spelling without accents never stand on two sides of a split.

    Args:
        text: A text, cleaned or not; case counts.
    """
    decomposed = unicodedata.normalize("NFD", text)
    letters = "".join(c for c in decomposed if unicodedata.category(c)[0] == "L")
    return letters or text


def position(text: str) -> float:
    """A sentence's place in [0, 1), which depends on the sentence only."""
    digest = hashlib.sha256(sentence_key(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hold_out(texts: Mapping[str, str], share: float = 0.1) -> set[str]:
    """Choose the utterances that are held out of a training: all of some sentences.

    Args:
        texts: The text of each utterance.
        share: Of the sentences, rounded up; one always stays.

    Returns:
        The ids of the utterances; none if there is one sentence only.
    """
    keys = {utterance: sentence_key(text.lower()) for utterance, text in texts.items()}
    sentences = sorted(set(keys.values()), key=lambda key: (position(key), key))
    count = min(max(1, round(share * len(sentences))), len(sentences) - 1)
    held = set(sentences[: max(0, count)])
    return {utterance for utterance, key in keys.items() if key in held}
