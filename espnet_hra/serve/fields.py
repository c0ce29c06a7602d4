"""The fields of a request for a transcript: which there are, and what is not done.

Whatever would change the answer and is not done here is refused, and so is a field that
nobody knows: it may be a misspelt one.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from espnet_hra.serve.problems import Problem

#: What is missing where a field is wrong, instead of the framework's words.
NEEDED = {
    "file": "the recording must come as a file, in a body of the type "
    "multipart/form-data (curl: -F file=@NAME)",
    "model": "give the name of a task, that of the base, or auto, as text",
}

#: Fields that count, once each.
_ONCE = (
    "file",
    "model",
    "language",
    "prompt",
    "response_format",
    "temperature",
    "stream",
)

#: Fields that say how, and the values of which nothing but these is done.
_ONLY = {
    "timestamp_granularities": ("segment", "times are those of segments; leave it out"),
    "chunking_strategy": (
        "auto",
        "recordings are cut in pauses, as auto; leave it out",
    ),
}


def check_fields(fields: Sequence[tuple[str, Any]]) -> None:
    """Refuse fields that are given twice, that are not done here, or unknown.

    Args:
        fields: Names and values, in the order of the request.

    Raises:
        Problem: There is such a field.
    """
    for name, count in Counter(name for name, _ in fields).items():
        if name in _ONCE and count > 1:
            raise Problem(
                400,
                f"{name}: given {count} times; give it once",
                name,
                "repeated_field",
            )
    for name, value in fields:
        if name in _ONCE or value == "":
            continue
        only, why = _ONLY.get(name.removesuffix("[]"), (None, ""))
        if only is None:
            raise Problem(
                400,
                f"{name[:80]}: this field is not known here; possible are "
                f"{', '.join((*_ONCE, *_ONLY))}",
                name[:80],
                "unsupported",
            )
        if value != only:
            raise Problem(400, f"{name}: {why}", name, "unsupported")


def refuse_unsupported(prompt: str, temperature: float, stream: bool) -> None:
    """Refuse what would change the answer and is not done here.

    Raises:
        Problem: It is asked for.
    """
    refused = {
        "prompt": (bool(prompt.strip()), "texts are not continued here; leave it out"),
        "temperature": (
            temperature != 0,
            "texts are the likeliest; leave it out, or give 0",
        ),
        "stream": (stream, "answers come whole; leave it out"),
    }
    for param, (asked, instead) in refused.items():
        if asked:
            raise Problem(400, f"{param}: {instead}", param, "unsupported")
