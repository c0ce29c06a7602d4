"""What texts begin with: a prefix, and the language of each task for Whisper."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from espnet_hra.errors import ConfigError
from espnet_hra.espnet.model import DATA_NAME
from espnet_hra.espnet.whisper import model_sizes
from espnet_hra.names import listing
from espnet_hra.tasks.config import read_records
from espnet_hra.whisper import tokens

Preprocess = Callable[[str, dict[str, Any]], dict[str, Any]]

#: The name of the data stream of transcripts.
_TEXT = "text"


def add_arguments(group: Any) -> None:
    """Add the options of a training to its parser's group."""
    group.add_argument(
        "--languages",
        type=json.loads,
        default={},
        help="The language of each task, for a multilingual Whisper (JSON: "
        '{"fr_june": "fr"}). Saved with the model: decoding uses it too',
    )
    group.add_argument(
        "--spelled_numbers",
        type=json.loads,
        default=[],
        help="Tasks whose transcripts have no digits, so that Whisper writes none for "
        'them (JSON: ["fr_june"]). Saved with the model: decoding uses it',
    )
    group.add_argument(
        "--text_prefix",
        type=str,
        default="",
        help="What stands before each transcript in training. Whisper's begin with a "
        "space; `--pretrained_model whisper:NAME` brings it along",
    )


def language_tokens(config: Mapping[str, Any]) -> dict[str, int] | None:
    """The token of each task's language.

    Args:
        config: Of a training, as ESPnet's task gets it or as it was saved.

    Returns:
        Tokens by task; None for models without such tokens.

    Raises:
        ConfigError: Whisper does not know a language, or knows English alone.
    """
    languages = config.get("languages") or {}
    if not isinstance(languages, Mapping):
        raise ConfigError(f"languages: {languages!r} is no language for each task")
    if config.get("bpemodel") != "whisper_multilingual":
        if languages:
            raise ConfigError(
                f"languages: {dict(languages)}: only a multilingual Whisper is told "
                f"the language, and this model's tokens are {config.get('token_type')};"
                " leave languages out"
            )
        return None
    sizes = model_sizes(config.get("decoder_conf"))
    vocabulary = tokens.Vocabulary(True, sizes.num_languages)
    return {
        str(task): vocabulary.convert_tokens_to_ids(
            f"<|{tokens.code_of(str(language), sizes.num_languages)}|>"
        )
        for task, language in languages.items()
    }


def check_languages(args: argparse.Namespace) -> None:
    """Refuse tasks of a multilingual Whisper whose language nobody has told.

    Raises:
        ConfigError: A task has none.
    """
    known = language_tokens(vars(args))
    usual = getattr(args, "preprocessor_conf", None) or {}
    if known is None or usual.get("whisper_language", "en") is not None:
        return  # an experiment that was trained on one language keeps it
    tasks = read_records(args.encoder_conf.get("tasks"))
    texts = [record.name for record in tasks if not record.labels]
    lacking = [name for name in texts if name not in known]
    if lacking:
        raise ConfigError(
            f"Whisper must be told the language of {listing(lacking)}: give "
            f"--languages '{json.dumps({lacking[0]: 'fr'})}' with a code for each "
            "task (the recipe takes it from utt2lang)"
        )


class Prompts:
    """A preprocessor that gives texts their prefix and their task's language.

    Args:
        preprocess: What the task does otherwise; it makes token numbers of a text.
        prefix: What stands before each text.
        languages: The token of each task's language.
    """

    def __init__(self, preprocess: Preprocess, prefix: str, languages: dict[str, int]):
        self._preprocess = preprocess
        self._prefix, self._languages = prefix, languages
        different = set(languages.values())
        self._only = different.pop() if len(different) == 1 else None

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, Any]:
        name, data = data.get(DATA_NAME), dict(data)
        text = data.get(_TEXT)
        if isinstance(text, str):
            data[_TEXT] = self._prefix + text
        data = self._preprocess(uid, data)
        if isinstance(text, str) and self._languages:
            token = self._languages.get(name) if name else self._only
            if token is not None:
                data[_TEXT][0] = token  # ESPnet's has the language of the whole model
        return data


def prompting(preprocess: Preprocess, config: Mapping[str, Any]) -> Preprocess:
    """A preprocessor with :class:`Prompts` where a configuration asks for them.

    Raises:
        ConfigError: As of :func:`language_tokens`.
    """
    languages = language_tokens(config) or {}
    prefix = config.get("text_prefix") or ""
    return Prompts(preprocess, prefix, languages) if prefix or languages else preprocess
