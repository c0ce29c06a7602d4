"""What an adapter does inside a model: sums over frames, their shares, and warnings.

For one layer, x is what the frozen layer returns, y what the next one receives, and x0
what the layer returns without any task. Over all frames of what was heard:

* *change*: ``|y - x| / |x|``, what the adapter adds right there;
* *drift*: ``|y - x0| / |x0|``, how far the stream has come away from the base's, by all
  that was added so far (of the encoder: a decoder writes other texts then);
* *kept*: ``<x, y'> / (|x| |y'|)``, where y' is what the frozen layer was given: the
  cosine of the angle between the stream before and after it. Near 1, the stream still
  says what earlier layers have seen, and a controller need not remember it;
* *active*: the share of frames in which a unit of the controller is above zero. One
  that never is, at no layer, is *dead*: no task can use it. One that always is, at
  every layer, is *saturated*: its relu never bends. (Of a light GRU: its gate is at an
  end.)
* *memory*: ``|h_l - h'_l| / |h_l|``, where h' is the controller's state with zeros in
  the place of h_1: how far the state at layer l comes from what layer 1 has shown;
* *gradient*: ``|dloss / dy|``, root mean square over the numbers of y.

Norms are over all frames and channels together (root of the sum of squares).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espnet_hra.files.tables import aligned, markdown
from espnet_hra.report.scoring import Errors
from espnet_hra.report.statistics import Interval, interval, resample

#: A layer of a part: ("encoder", 0).
Place = tuple[str, int]

#: Units that are dead or saturated are worth a warning from this share on.
_MANY = 0.25

#: A gate is at an end this near to 0 or 1; a unit is saturated in this share of frames.
GATE_END, _ALWAYS = 0.01, 0.999

#: Changes that are worth a warning: more than the stream itself, or next to nothing.
_LARGE, _SMALL = 1.0, 1e-3

#: The state at the last layer that has forgotten the first one.
_FORGOTTEN = 0.01

#: Ratio of the largest to the smallest gradient of a part's layers.
_STEEP = 100.0


@dataclass
class Layer:
    """Sums over frames at one layer, for one task; shares are properties.

    Attributes:
        frames: How many frames.
        stream2: Sum of squares of x.
        change2: Of y - x.
        plain2: Of x0.
        drift2: Of y - x0.
        along: Sum of products of x and what the layer was given, where that is known.
        across2: Of x there.
        given2: Of what it was given.
        state2: Of the controller's state, where there is one before it.
        memory2: Of what it owes to layer 1.
        unit_frames: Frames in which the units below were looked at.
        active: In how many of them each unit was above zero, (c,).
        stuck: In how many of them each unit's relu did not bend, or its gate was at an
            end, (c,).
        gradient2: Sum of squares of the loss's gradient.
        numbers: How many numbers that is of.
    """

    frames: int = 0
    stream2: float = 0.0
    change2: float = 0.0
    plain2: float = 0.0
    drift2: float = 0.0
    along: float = 0.0
    across2: float = 0.0
    given2: float = 0.0
    state2: float = 0.0
    memory2: float = 0.0
    unit_frames: int = 0
    active: np.ndarray | None = None
    stuck: np.ndarray | None = None
    gradient2: float = 0.0
    numbers: int = 0

    @property
    def change(self) -> float:
        """What is added, as a share of the stream; nan where nothing was heard."""
        return _ratio(self.change2, self.stream2)

    @property
    def drift(self) -> float:
        """How far the stream is from the base's, as a share; nan if not looked at."""
        return _ratio(self.drift2, self.plain2)

    @property
    def kept(self) -> float:
        """How far x points where the stream before did; nan if that is not known."""
        length = math.sqrt(self.across2 * self.given2)
        return self.along / length if length > 0 else math.nan

    @property
    def memory(self) -> float:
        """What the state owes to layer 1, as a share; nan at layer 1 itself."""
        return _ratio(self.memory2, self.state2)

    @property
    def gradient(self) -> float:
        """Root mean square of the loss's gradient; nan if not looked at."""
        return math.sqrt(self.gradient2 / self.numbers) if self.numbers else math.nan

    @property
    def activity(self) -> float:
        """Mean share of the units that are above zero; nan without a controller."""
        if self.active is None:
            return math.nan
        return float(self.active.mean() / self.unit_frames)

    def units(self, active: np.ndarray, stuck: np.ndarray) -> None:
        """Add what was seen of the units, (frames, c) each."""
        self.unit_frames += len(active)
        counts = active.sum(axis=0), stuck.sum(axis=0)
        if self.active is None or self.stuck is None:
            self.active, self.stuck = counts
        else:
            self.active, self.stuck = self.active + counts[0], self.stuck + counts[1]

    @property
    def dead(self) -> np.ndarray:
        """Which units were never active here, (c,)."""
        assert self.active is not None
        return self.active == 0

    @property
    def saturated(self) -> np.ndarray:
        """Which units were saturated here, (c,)."""
        assert self.stuck is not None
        return self.stuck >= _ALWAYS * self.unit_frames


@dataclass
class Gain:
    """What a task brings on utterances whose texts are known.

    Attributes:
        before: Errors of each utterance without a task.
        after: Errors of each with it.
    """

    before: list[Errors] = field(default_factory=list)
    after: list[Errors] = field(default_factory=list)

    def rates(self, samples: int = 10_000) -> tuple[Interval, Interval, Interval]:
        """CER before, after, and the difference, with 95 % intervals.

        The intervals are of a paired bootstrap over utterances; there is none of fewer
        than two.
        """
        return paired(self.before, self.after, "character_errors", samples)


def paired(
    before: Sequence[Errors],
    after: Sequence[Errors],
    what: str = "word_errors",
    samples: int = 10_000,
) -> tuple[Interval, Interval, Interval]:
    """Error rates of the same utterances before and after, and their difference.

    Args:
        before: Errors of each utterance.
        after: The same after.
        what: ``word_errors`` or ``character_errors``.
        samples: The number of resamples.

    Returns:
        In percent, with the 95 % intervals of a bootstrap over utterances; without one
        of fewer than two utterances.
    """
    length = "words" if what == "word_errors" else "characters"
    lengths = np.array([getattr(one, length) for one in before], float)
    errors = np.array(
        [[getattr(one, what) for one in part] for part in (before, after)], float
    ).T
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = 100.0 * errors.sum(axis=0) / lengths.sum()
    values = [float(rates[0]), float(rates[1]), float(rates[1] - rates[0])]
    if len(before) < 2:
        return Interval(values[0]), Interval(values[1]), Interval(values[2])
    drawn = resample(errors, lengths, samples, np.random.default_rng(0))
    columns = (drawn[:, 0], drawn[:, 1], drawn[:, 1] - drawn[:, 0])
    first, second, third = (interval(v, [c]) for v, c in zip(values, columns))
    return first, second, third


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        tasks: For each task the layers, in the order of the model.
        gains: For each task with known texts what it brings.
        controller: The controller's name; "" of methods without one.
        utterances: How many each task has heard.
        labels: For each task that tells labels, of each utterance whose label is known
            whether it told that one.
    """

    tasks: dict[str, dict[Place, Layer]] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)
    controller: str = ""
    utterances: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        """All layers, those of the encoder first."""
        found = {place for own in self.tasks.values() for place in own}
        return sorted(found, key=lambda place: (place[0] != "encoder", place))

    def at(self, place: Place) -> list[Layer]:
        """A layer for each task that has it."""
        return [own[place] for own in self.tasks.values() if place in own]

    def units(self) -> tuple[int, np.ndarray, np.ndarray]:
        """How many units there are, and which are dead and saturated everywhere.

        Everywhere is at all layers, for all tasks that were looked at.
        """
        seen = [one for p in self.places for one in self.at(p) if one.unit_frames]
        if not seen:
            return 0, np.zeros(0, bool), np.zeros(0, bool)
        dead = np.logical_and.reduce([one.dead for one in seen])
        saturated = np.logical_and.reduce([one.saturated for one in seen])
        return len(dead), dead, saturated & ~dead


def _ratio(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else math.nan


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# ------------------------------------------------------------------------------ tables


def rows(found: Diagnosis) -> list[list[str]]:
    """The table: a line for each layer, the mean over tasks; the first is the head."""
    cells = [["layer", "change", "drift", "kept", "memory", "active"]]
    cells[0] += ["dead", "saturated"]
    gradients = any(one.numbers for p in found.places for one in found.at(p))
    if gradients:
        cells[0].append("gradient")
    for place in found.places:
        layers = found.at(place)
        looked = [one for one in layers if one.unit_frames]
        line = [
            f"{place[0]} {place[1] + 1}",
            _percent(_mean(one.change for one in layers)),
            _percent(_mean(one.drift for one in layers)),
            _percent(_mean(one.kept for one in layers)),
            _percent(_mean(one.memory for one in layers)),
            _percent(_mean(one.activity for one in layers)),
        ]
        for name in ("dead", "saturated"):
            everywhere = [getattr(one, name) for one in looked]
            count = np.logical_and.reduce(everywhere).sum() if looked else ""
            line.append(str(count))
        if gradients:
            value = _mean(one.gradient for one in layers)
            line.append("" if math.isnan(value) else f"{value:.1e}")
        cells.append(line)
    return cells


def task_rows(found: Diagnosis) -> list[list[str]]:
    """Tasks side by side: what each changes on average, most, and what it brings."""
    cells = [["task", "utterances", "mean change", "largest change", "at"]]
    if found.gains:
        cells[0] += ["CER without", "CER with", "difference"]
    if found.labels:
        cells[0].append("wrong labels")
    for name, layers in found.tasks.items():
        known = {p: one.change for p, one in layers.items() if one.change >= 0}
        most = max(known, key=lambda p: known[p], default=None)
        line = [
            name,
            str(found.utterances.get(name, 0)),
            _percent(_mean(known.values())),
            "" if most is None else _percent(known[most]),
            "" if most is None else f"{most[0]} {most[1] + 1}",
        ]
        if name in found.gains:
            before, after, change = found.gains[name].rates()
            line += [before.text(), after.text(), change.text("+")]
        elif found.gains:
            line += ["", "", ""]
        told = found.labels.get(name, [])
        if told:
            line.append(f"{told.count(False)} of {len(told)}")
        elif found.labels:
            line.append("")
        cells.append(line)
    return cells


def summary(found: Diagnosis) -> str:
    """A sentence about the controller; empty without one."""
    count, dead, saturated = found.units()
    if not count:
        return ""
    return (
        f"controller {found.controller}: {count} units, {dead.sum()} dead (never "
        f"active), {saturated.sum()} saturated (never bend)"
    )


def for_terminal(found: Diagnosis) -> str:
    """All tables as aligned text."""
    parts = ["\n".join(aligned(rows(found))), "\n".join(aligned(task_rows(found)))]
    parts += [text for text in (summary(found),) if text]
    parts += [f"warning: {line}" for line in warnings(found)]
    return "\n\n".join(parts)


def for_page(found: Diagnosis) -> str:
    """The same in Markdown."""
    parts = [markdown(rows(found)), markdown(task_rows(found)), summary(found)]
    parts += [f"**Warning:** {line}" for line in warnings(found)]
    return "\n\n".join(part for part in parts if part)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f} %"


# ---------------------------------------------------------------------------- warnings


def warnings(found: Diagnosis) -> list[str]:
    """What is worth a second look, a line each."""
    return [*_unit_warnings(found), *_layer_warnings(found), *_task_warnings(found)]


def _unit_warnings(found: Diagnosis) -> Iterator[str]:
    count, dead, saturated = found.units()
    for which, what, remedy in (
        (dead, "dead", "a smaller controller would do as well (controller_size)"),
        (saturated, "saturated", "the controller is nearly linear"),
    ):
        if count and which.sum() >= _MANY * count:
            yield f"{which.sum()} of {count} units are {what}: {remedy}"


def _layer_warnings(found: Diagnosis) -> Iterator[str]:
    for place in found.places:
        change = _mean(one.change for one in found.at(place))
        if change > _LARGE:
            yield (
                f"{place[0]} layer {place[1] + 1}: the adapter adds {change:.1f} times "
                "the stream: a lower rate (optim_conf: lr) may do better"
            )
    for part in dict.fromkeys(part for part, _ in found.places):
        own = [place for place in found.places if place[0] == part]
        changes = [_mean(one.change for one in found.at(place)) for place in own]
        if changes and all(change < _SMALL for change in changes):
            yield (
                f"{part}: no layer is changed by more than {100 * _SMALL:g} %: were "
                "the tasks trained?"
            )
        memory = _mean(one.memory for one in found.at(own[-1]))
        if memory < _FORGOTTEN:
            yield (
                f"{part}: at the last layer {100 * memory:.2g} % of the controller's "
                "state come from the first: what is recurrent is hardly used"
            )
        gradients = [_mean(one.gradient for one in found.at(place)) for place in own]
        known = [value for value in gradients if value > 0]
        if known and max(known) > _STEEP * min(known):
            yield (
                f"{part}: gradients of its layers differ {max(known) / min(known):,.0f}"
                "-fold"
            )


def _task_warnings(found: Diagnosis) -> Iterator[str]:
    for name, gain in found.gains.items():
        _, _, change = gain.rates()
        if change.value >= 0:
            yield f"task {name!r} brings nothing here: CER {change.text('+')}"
        elif change.high >= 0:
            yield (
                f"task {name!r}: whether it brings anything cannot be told from "
                f"{len(gain.before)} utterances: CER {change.text('+')}"
            )


# -------------------------------------------------------------------------------- data


def as_data(found: Diagnosis) -> dict[str, Any]:
    """Everything as numbers and lists, for JSON; what is not known is None."""
    count, dead, saturated = found.units()

    def layer(place: Place, one: Layer) -> Mapping[str, Any]:
        shares = ("change", "drift", "kept", "memory", "activity", "gradient")
        values = {name: getattr(one, name) for name in shares}
        return {
            "part": place[0],
            "layer": place[1] + 1,
            **{name: None if math.isnan(v) else v for name, v in values.items()},
        }

    data: dict[str, Any] = {
        "controller": found.controller or None,
        "units": count,
        "dead": np.flatnonzero(dead).tolist(),
        "saturated": np.flatnonzero(saturated).tolist(),
        "tasks": {
            name: {
                "utterances": found.utterances.get(name, 0),
                "layers": [layer(place, one) for place, one in layers.items()],
            }
            for name, layers in found.tasks.items()
        },
        "warnings": warnings(found),
    }
    for name, gain in found.gains.items():
        before, after, change = gain.rates()
        data["tasks"][name]["cer"] = {
            "without": before.value,
            "with": after.value,
            "difference": [change.value, *_known(change.low, change.high)],
        }
    for name, told in found.labels.items():
        data["tasks"][name]["labels"] = {"told": len(told), "wrong": told.count(False)}
    return data


def _known(*values: float) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
