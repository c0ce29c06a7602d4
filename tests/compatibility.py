"""What tests show of encoders, objectives and entrances, and the page made of it.

A test says what it shows::

    @pytest.mark.shows(encoder="conformer", objective="ctc", entrance=("train", "pack"))

and of a parametrised test a value may be the name of a parameter in braces,
``encoder="{kind}"``. A test of a refusal has ``because=`` with a key of
:data:`REASONS` as well. ``make compatibility`` writes docs/compatibility.md.
"""

import collections
from collections.abc import Iterable
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"

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
    "longformer",
    "wav2vec2",
    "hubert",
    "hubert_pretrain",
    "avhubert",
    "linear",
    "rnn",
    "vgg_rnn",
    "encoder of asr_transducer",
    "out of tree",
)
OBJECTIVES = (
    "CTC",
    "CTC and attention",
    "attention",
    "attention, adapted decoder",
    "recurrent decoder",
    "transducer",
    "transducer of asr_transducer",
    "intermediate CTC, self-conditioned",
    "Mask-CTC",
    "several speakers (PIT)",
    "s2t",
    "s2t_ctc",
    "st",
    "slu",
)
ENTRANCES = (
    "in Python",
    "train",
    "decode",
    "transcribe",
    "Speech2Text",
    "streaming",
    "adapt",
    "tasks add",
    "recipe",
    "pack",
    "asr.sh",
    "ESPnet3",
    "--quantize_asr_model",
    "align",
    "export",
)
AXES = {"encoder": ENCODERS, "objective": OBJECTIVES, "entrance": ENTRANCES}

#: Why a cell has no test that passes; what is refused names its test too.
REASONS = {
    "recurrent": "refused: recurrent over time, no list of layers",
    "no layers": "refused: it has no layers",
    "no CTC": "refused: ESPnet aligns by a CTC, which it has not",
    "not streaming": "refused: not a streaming encoder",
    "asr alone": "refused by name: for models of `asr`",
    "no greedy CTC": "refused: no CTC to read greedily; beam search does it",
    "fairseq": "not tried: needs fairseq, which has no release for Python 3.12",
    "package": "not tried: needs the package longformer, which no index has",
    "not espnet": "none: ESPnet has no such combination",
    "same way": "no test of its own: the way in is the same for all encoders",
    "same objective": "no test of its own: the way in is the same for all objectives",
    "same encoding": "no test of its own: the loss is computed on any encoder's output",
}

_FAIRSEQ = ("wav2vec2", "hubert", "hubert_pretrain", "avhubert")
_OWN, _ITS = "encoder of asr_transducer", "transducer of asr_transducer"
_NEVER = ("rnn", "vgg_rnn", "linear")

#: Reasons of cells without a test: (encoders, objectives, entrances), the first fits;
#: None for all.
Some = Iterable[str] | None
RULES: tuple[tuple[Some, Some, Some, str], ...] = (
    (_FAIRSEQ, None, None, "fairseq"),
    (("longformer",), None, None, "package"),
    (("rnn", "vgg_rnn"), None, None, "recurrent"),
    (("linear",), None, None, "no layers"),
    ((_OWN,), set(OBJECTIVES) - {_ITS}, None, "not espnet"),
    (set(ENCODERS) - {_OWN}, (_ITS,), None, "not espnet"),
    ((_OWN,), None, ("recipe", "adapt", "export"), "asr alone"),
    ((_OWN,), None, ("ESPnet3",), "not espnet"),
    (("e_branchformer_ctc",), set(OBJECTIVES) - {"s2t_ctc"}, None, "not espnet"),
    (set(ENCODERS) - {"e_branchformer_ctc"}, ("s2t_ctc",), None, "not espnet"),
    (("whisper",), set(OBJECTIVES) - {"attention"}, None, "not espnet"),
    (("transformer_multispkr",), None, ("streaming",), "not streaming"),
    (None, ("several speakers (PIT)",), None, "not espnet"),
    (None, ("s2t", "s2t_ctc", "st", "slu", _ITS), ("adapt", "recipe"), "asr alone"),
    (None, (_ITS,), ("ESPnet3",), "not espnet"),
    (None, ("s2t", "s2t_ctc", "st", "slu"), ("ESPnet3", "streaming"), "not espnet"),
    (set(ENCODERS), None, ("streaming",), "not streaming"),
    (set(ENCODERS), None, set(ENTRANCES), "same way"),
    (None, set(OBJECTIVES), set(ENTRANCES), "same objective"),
    (None, None, None, "same encoding"),
)


class Shown:
    """Which tests show what."""

    def __init__(self, items: Iterable[pytest.Item]):
        self.tests: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.reasons: dict[tuple[str, str], str] = {}
        self.proofs: dict[str, set[str]] = collections.defaultdict(set)
        self.modules = set()
        for item in items:
            self.modules.add(Path(item.path).name)
            for mark in item.iter_markers("shows"):
                self._add(item, **mark.kwargs)

    def _add(self, item: pytest.Item, because: str | None = None, **said) -> None:
        call = getattr(item, "callspec", None)
        parameters = {} if call is None else call.params
        values: dict[str, list[str]] = {}
        for axis, given in said.items():
            given = (given,) if isinstance(given, str) else given
            values[axis] = [
                _NAMES.get(v, v) for v in (g.format(**parameters) for g in given)
            ]
            unknown = set(values[axis]) - set(AXES[axis])
            if unknown:
                raise pytest.UsageError(
                    f"{item.nodeid}: no {axis} of the page: {', '.join(unknown)}"
                )
        name = f"{Path(item.path).stem}::{item.name.partition('[')[0]}"
        if because is not None:
            self.proofs[because].add(name)
        for one, other in (
            ("encoder", "entrance"),
            ("objective", "entrance"),
            ("encoder", "objective"),
        ):
            for row in values.get(one, ()):
                for column in values.get(other, ()):
                    if name not in self.tests[row, column]:
                        self.tests[row, column].append(name)
                    if because is not None:
                        self.reasons[row, column] = REASONS[because]

    def cell(self, **chosen: str) -> str:
        """A test, how many more there are, or the reason why there is none."""
        row, column = chosen.values()
        found = sorted(self.tests.get((row, column), ()))
        text = f"`{found[0]}`" if found else ""
        text += f" (+{len(found) - 1})" if len(found) > 1 else ""
        reason = self.reasons.get((row, column))
        if reason is None and not found:
            key = rule(**chosen)
            reason = REASONS[key]
            # Where another cell's test shows that it is so, that one is named.
            text = f"`{min(self.proofs[key])}`" if self.proofs[key] else ""
        return ": ".join(part for part in (reason, text) if part)


#: How tests name what the page names otherwise.
_NAMES = {
    "ctc": "CTC",
    "hybrid": "CTC and attention",
    "rnn_decoder": "recurrent decoder",
    "intermediate_ctc": "intermediate CTC, self-conditioned",
    "mask_ctc": "Mask-CTC",
    "whisper-like": "out of tree",
    "16k": "conformer",
    "8k": "conformer",
    "blockwise": "contextual_block_conformer",
}


def rule(**chosen: str) -> str:
    """The key of the reason why a cell has no test."""
    for encoders, objectives, entrances, key in RULES:
        rows = {"encoder": encoders, "objective": objectives, "entrance": entrances}
        # A rule that limits an axis says nothing of tables without it.
        if all(
            values is None or chosen.get(axis) in values
            for axis, values in rows.items()
        ):
            return key
    raise AssertionError("the last rule fits all")


def _table(shown: Shown, rows: str, columns: str) -> list[str]:
    """One list a row: cells are long."""
    lines = []
    for row in AXES[rows]:
        # What many columns have in common is said once.
        said: dict[str, list[str]] = {}
        for column in AXES[columns]:
            cell = shown.cell(**{rows: row, columns: column})
            said.setdefault(cell, []).append(column)
        lines += [
            f"| **{row}** | |",
            *(f"| {', '.join(names)} | {cell} |" for cell, names in said.items()),
        ]
    return ["| | |", "|---|---|", *lines, ""]


def page(shown: Shown) -> str:
    """The page docs/compatibility.md."""
    lines = [
        "# Compatibility",
        "",
        "Which encoder works with which objective, and through which entrance. Every "
        "cell names a test that runs (in `tests/`, with the number of others), or says "
        "why there is none. The page is made of the tests' own marks by `make "
        "compatibility`; a test compares it with them.",
        "",
        "## Encoders and entrances",
        "",
        *_table(shown, "encoder", "entrance"),
        "## Objectives and entrances",
        "",
        *_table(shown, "objective", "entrance"),
        "## Encoders and objectives",
        "",
        *_table(shown, "encoder", "objective"),
    ]
    return "\n".join(lines).rstrip() + "\n"


# ------------------------------------------------------------------- hooks of pytest

_SHOWN = pytest.StashKey[Shown]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that writes the page."""
    parser.addoption(
        "--compatibility",
        metavar="PAGE",
        help="with --collect-only: write the page of what the collected tests show",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark."""
    config.addinivalue_line(
        "markers", "shows(encoder, objective, entrance, because): what a test shows"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Read the marks of all tests, before some are left out."""
    shown = Shown(items)
    config.stash[_SHOWN] = shown
    if config.getoption("--compatibility"):
        text = page(shown)
        Path(config.getoption("--compatibility")).write_text(text, encoding="utf-8")


def shown_by(config: pytest.Config) -> Shown:
    """What the tests of this session show."""
    return config.stash[_SHOWN]
