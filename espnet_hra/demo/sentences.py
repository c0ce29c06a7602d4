"""The sentences that a person reads aloud to teach a task."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.data.requirements import Requirements
from espnet_hra.errors import DataError

#: What is read where nobody brings sentences: everyday English with all of its sounds,
#: numbers, names and times. Written for this page.
DEFAULT = (
    "Good morning, could you tell me when the next train leaves?",
    "My sister bought three pounds of cherries at the market.",
    "Please turn off the lights before you go to bed.",
    "The weather should be bright and dry on Thursday.",
    "He measured the table twice and still cut it too short.",
    "We usually have coffee with a little milk and no sugar.",
    "Her phone number ends with seven four nine two.",
    "The children were playing by the river all afternoon.",
    "I would like to change my appointment to next Wednesday.",
    "Put the blue box on the shelf behind the door.",
    "A thousand people came to hear the choir sing.",
    "You can pay in cash or by card, whichever you prefer.",
    "The judge asked the young man to speak more clearly.",
    "Our flight was delayed for almost two hours by the fog.",
    "She wrote a long letter to her cousin in Zurich.",
    "Turn left at the church and walk as far as the bridge.",
    "It took five minutes to boil the eggs and make toast.",
    "The doctor says that fresh air is good for the lungs.",
    "They have just moved to a house with a large garden.",
    "What is the quickest way from here to the station?",
    "I think that the red jacket suits you better.",
    "The old clock in the kitchen strikes every quarter of an hour.",
    "Send the package to fifteen Maple Street, please.",
    "Nobody could explain why the engine had stopped.",
    "Leave a message after the tone, and I will call you back.",
    "The museum opens at ten and closes at half past six.",
    "We watched the ships go by and shared an orange.",
    "His voice was rough because he had caught a cold.",
    "There is enough rice in the cupboard for two more meals.",
    "Thank you for your patience, this was the last sentence.",
)

#: Bounds of a list that a person brings along.
_MOST, _LONGEST = 1000, 400


def read_sentences(path: str | Path) -> tuple[str, ...]:
    """The sentences of a text file, one a line; empty lines do not count.

    Raises:
        DataError: It cannot be read, or has no sentences, too many or too long ones.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read as a text file: {e}") from e
    found = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    if not found:
        raise DataError(f"{path}: there are no sentences in it; write one a line")
    if len(found) > _MOST or max(map(len, found)) > _LONGEST:
        raise DataError(
            f"{path}: {len(found):,} lines, the longest of {max(map(len, found)):,} "
            f"characters: at most {_MOST:,} lines of {_LONGEST} are read"
        )
    return found


def fitted(sentence: str, requirements: Requirements) -> str:
    """A sentence as the model's transcripts are written: case and punctuation.

    Args:
        sentence: As it is shown to the person who reads it.
        requirements: Of the model; where its tokens are not known here (Whisper's write
            everything) the sentence stays as it is.

    Raises:
        DataError: The model has no tokens for it.
    """
    tokens, split = requirements.tokens, requirements.tokenizer
    if tokens is None or split is None:
        return sentence
    known = frozenset(tokens)
    bare = without_punctuation(sentence)
    plain = "".join(
        c for c in unicodedata.normalize("NFD", bare) if not unicodedata.combining(c)
    )
    spelled = (form(t) for t in (sentence, bare, plain) for form in _CASES)
    for text in spelled:
        if text and all(token in known for token in split(text)):
            return text
    lacking = sorted({token for token in split(bare) if token not in known})
    raise DataError(
        f"{sentence!r}: this model has no tokens for {' '.join(lacking)}; bring other "
        "sentences with --sentences FILE"
    )


_CASES = (str, str.lower, str.upper)


def without_punctuation(text: str) -> str:
    """A text without signs; apostrophes within words stay."""
    text = unicodedata.normalize("NFC", text).replace("’", "'")
    kept = [
        c if c == "'" or unicodedata.category(c)[0] not in "PS" else " " for c in text
    ]
    words = (word.strip("'") for word in "".join(kept).split())
    return " ".join(word for word in words if word)


def folded(text: str) -> str:
    """What is compared of two texts: their words, without case and signs."""
    return without_punctuation(text).casefold()


def fit_all(sentences: Sequence[str], requirements: Requirements) -> list[str]:
    """All sentences as the model writes them. Errors as of :func:`fitted`."""
    return [fitted(sentence, requirements) for sentence in sentences]
