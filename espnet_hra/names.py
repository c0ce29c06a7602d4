"""Names of tasks and of adapted encoders, and how messages list them."""

import itertools
import re
from collections.abc import Iterable

from espnet_hra.errors import TaskError

#: What stands before the name of an encoder that is wrapped.
PREFIX = "hra_"

#: ESPnet's encoders that are known to work, for messages; others are tried.
ENCODERS = (
    "conformer",
    "transformer",
    "branchformer",
    "e_branchformer",
    "e_branchformer_ctc",
    "multiconv_conformer",
    "contextual_block_conformer",
    "contextual_block_transformer",
    "transformer_multispkr",
    "whisper",
    "beats",
    "torchaudiohubert",
)

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: Packs end the name of their encoder with this. Whoever opens one without this package
#: reads it in ESPnet's error, "--encoder must be one of (...): --encoder <name>": it is
#: the only value of a pack that ESPnet's error shows. With this package, the name is
#: found with and without it. (ESPnet looks up lower-case names only.)
ENCODER_HINT = (
    ' (of the package espnet-hra: "pip install espnet-hra", then "import espnet_hra")'
)

#: A message about one wrong name shall not read a folder of a million files.
_COUNTED = 10_000


def plain_encoder(name: str) -> str:
    """The name of an encoder without the hint of packs."""
    return name.removesuffix(ENCODER_HINT)


def known_encoders() -> str:
    """Those of :data:`ENCODERS` in a message: "a, b and c"."""
    *others, last = ENCODERS
    return f"{', '.join(others)} and {last}"


def adapted_encoder(name: str) -> str:
    """The adapted counterpart of an encoder's name."""
    return PREFIX + name.removeprefix(PREFIX)


def check_task_name(name: object) -> str:
    """Return the name if it is a valid task name.

    Raises:
        TaskError: The name is no string or has other characters than the allowed.
    """
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise TaskError(
            f"{name!r} is not a task name: use up to 128 letters, digits, dots, "
            "underscores and hyphens, beginning with a letter or digit"
        )
    return name


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Names for a message; long lists are cut and counted, very long ones not counted.

    Args:
        names: Task names.
        limit: How many to write out.

    Returns:
        ``"a, b, c"``, ``"a, b, ... (10,000 in all)"`` or ``"none"``.
    """
    names = list(itertools.islice(names, _COUNTED + 1))
    if not names:
        return "none"
    shown = ", ".join(names[:limit])
    if len(names) <= limit:
        return shown
    if len(names) > _COUNTED:
        return f"{shown}, ... (more than {_COUNTED:,} in all)"
    return f"{shown}, ... ({len(names):,} in all)"


def to_key(name: str) -> str:
    """How a task's parameter is called: torch forbids dots, task names slashes."""
    return name.replace(".", "/")


def from_key(key: str) -> str:
    """The task whose parameter is called so."""
    return key.replace("/", ".")
