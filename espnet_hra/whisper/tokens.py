"""Whisper's tokens and prompts, as ESPnet expects them.

ESPnet's classes for Whisper's text were written for a release of openai-whisper whose
tokenizer was one of Hugging Face's. Today's is tiktoken's, with the same vocabulary.
:class:`Vocabulary` is it with the methods that ESPnet calls.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from espnet_hra.errors import ConfigError
from espnet_hra.whisper import package
from espnet_hra.whisper.sizes import Sizes

#: Begins the prompt, ends the text.
START, END = "<|startoftranscript|>", "<|endoftext|>"

#: How tokens write the bytes: those that can be seen are themselves, a space is "Ġ".
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {byte: chr(byte) for byte in _SEEN} | {
    byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in _SEEN)
}
_CHARACTERS = {character: byte for byte, character in _BYTES.items()}
SPACE = _BYTES[ord(" ")]


class Vocabulary:
    """The tokens of one Whisper; what ESPnet calls ``tokenizer.tokenizer``.

    Args:
        multilingual: Whether it knows other languages than English.
        num_languages: How many languages it has a token for.
    """

    def __init__(self, multilingual: bool, num_languages: int = 99):
        self._made = (multilingual, num_languages)
        self._encoding = _encoding(multilingual, num_languages)
        self._added: dict[str, int] = {}
        special = self._encoding.special_tokens_set
        #: How many tokens are pieces of words.
        self.vocab_size = self._encoding.n_vocab - len(special)
        #: What Whisper is told and tells besides words, but for the timestamps: ESPnet
        #: adds those itself, behind what an experiment has added.
        self.special = {
            token: self._encoding.encode_single_token(token)
            for token in special
            if not _TIMESTAMP.fullmatch(token)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._made, list(self._added))

    # ------------------------------------------------------ as of Hugging Face's

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """Add tokens behind all others; those that are there already stay."""
        before = len(self._added)
        for token in tokens:
            if token not in self.special and token not in self._added:
                self._added[token] = self._first_free + len(self._added)
        return len(self._added) - before

    def add_special_tokens(self, tokens: Mapping[str, Sequence[str]]) -> int:
        """As :meth:`add_tokens`, for all lists of a mapping."""
        return sum(self.add_tokens(names) for names in tokens.values())

    def get_added_vocab(self) -> dict[str, int]:
        """Tokens that are no pieces of words, and their numbers."""
        return {**self.special, **self._added}

    @property
    def _first_free(self) -> int:
        return self.vocab_size + len(self.special)

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text; special ones in it count as one each."""
        return self.convert_ids_to_tokens(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        known = self.get_added_vocab()
        ids: list[int] = []
        for part in _split(tuple(known)).split(text):
            if part in known:
                ids.append(known[part])
            else:
                ids += self._encoding.encode_ordinary(part)
        return ids

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The number of a token, or those of several."""
        if isinstance(tokens, str):
            return self._number(tokens)
        return [self._number(token) for token in tokens]

    def _number(self, token: str) -> int:
        if token in self.special:
            return self.special[token]
        if token in self._added:
            return self._added[token]
        try:
            return self._encoding.encode_single_token(_as_bytes(token))
        except KeyError:
            return self.special[END]  # Hugging Face's stood for the unknown with it

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of a number, or those of several."""
        if isinstance(ids, int):
            return self._token(ids)
        special = set(self.special.values()) | set(self._added.values())
        return [
            self._token(int(number))
            for number in ids
            if not (skip_special_tokens and int(number) in special)
        ]

    def _token(self, number: int) -> str:
        if number < self.vocab_size:
            raw = self._encoding.decode_single_token_bytes(number)
            return "".join(_BYTES[byte] for byte in raw)
        return self._names[number]

    def with_digits(self) -> list[int]:
        """Numbers of the pieces of words that have a digit of any script."""
        texts = (
            self._encoding.decode_single_token_bytes(number).decode(errors="ignore")
            for number in range(self.vocab_size)
        )
        return [i for i, text in enumerate(texts) if any(map(str.isdigit, text))]

    @property
    def _names(self) -> dict[int, str]:
        return {number: token for token, number in self.get_added_vocab().items()}

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of tokens; bytes that are no character become a question mark."""
        known = self.get_added_vocab()
        raw = b"".join(
            token.encode() if token in known else _as_bytes(token) for token in tokens
        )
        return raw.decode("utf-8", errors="replace")


_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")


@functools.lru_cache(maxsize=8)
def _split(known: tuple[str, ...]) -> re.Pattern[str]:
    longest = sorted(known, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest))})")


def _as_bytes(token: str) -> bytes:
    return bytes(_CHARACTERS[c] for c in token if c in _CHARACTERS)


def _encoding(multilingual: bool, num_languages: int) -> Any:
    return package.openai_whisper().tokenizer.get_encoding(
        name="multilingual" if multilingual else "gpt2", num_languages=num_languages
    )


def _again(made: tuple[bool, int], added: Sequence[str]) -> Vocabulary:
    vocabulary = Vocabulary(*made)
    vocabulary.add_tokens(added)
    return vocabulary


class Tokenizer:
    """What ESPnet calls ``tokenizer``: the vocabulary, and the usual prompt.

    Args:
        multilingual: As of openai-whisper's ``get_tokenizer``.
        num_languages: Likewise.
        language: Likewise; a name such as ``french`` or a code.
        task: ``transcribe`` or ``translate``.
    """

    def __init__(
        self,
        multilingual: bool,
        *,
        num_languages: int = 99,
        language: str | None = None,
        task: str | None = None,
    ):
        self.tokenizer = Vocabulary(multilingual, num_languages)
        self.sot_sequence_including_notimestamps = prompt(
            self.tokenizer,
            code_of(language or "en", num_languages) if multilingual else None,
            task or "transcribe",
        )


def prompt(
    vocabulary: Vocabulary, language: str | None, task: str = "transcribe"
) -> tuple[int, ...]:
    """The tokens that a text begins with.

    Args:
        vocabulary: The tokens.
        language: A code; None for a Whisper of English alone, which has no choice.
        task: ``transcribe`` or ``translate``.
    """
    words = [START] + ([f"<|{language}|>", f"<|{task}|>"] if language else [])
    return tuple(vocabulary.convert_tokens_to_ids([*words, "<|notimestamps|>"]))


def code_of(language: str, num_languages: int = 99) -> str:
    """The code of a language that Whisper has a token for.

    Args:
        language: A code such as ``fr``, also with a region (``fr-CA``), or an English
            name such as ``french``.
        num_languages: How many languages this Whisper knows.

    Raises:
        ConfigError: Whisper does not know it.
    """
    module = package.openai_whisper().tokenizer
    known = codes(num_languages)
    word = language.strip().lower()
    code = module.TO_LANGUAGE_CODE.get(word, re.split("[-_]", word)[0])
    if code not in known:
        raise ConfigError(
            f"language {language!r}: Whisper has no token for it; it knows "
            f"{', '.join(known)}: give one of these, e.g. of a related language"
        )
    return code


def codes(num_languages: int = 99) -> list[str]:
    """The codes of the languages that Whisper has a token for."""
    return list(package.openai_whisper().tokenizer.LANGUAGES)[:num_languages]


def token_list(sizes: Sizes) -> list[str]:
    """All tokens of a Whisper, in order, as ESPnet's ``token_list``."""
    vocabulary = Vocabulary(sizes.multilingual, sizes.num_languages)
    vocabulary.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    return vocabulary.convert_ids_to_tokens(range(sizes.n_vocab))
