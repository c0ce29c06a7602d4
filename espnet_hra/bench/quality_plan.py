"""Plans of a comparison: their keys, configurations, and what was judged on dev."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from espnet_hra.errors import ConfigError, UserError
from espnet_hra.files.checkpoint import read_training
from espnet_hra.files.config import read_yaml
from espnet_hra.files.variants import longer, read_config

PARTS = (
    *("rates", "lengths", "choices", "runs", "alone", "forgetting"),
    *("counts", "newcomers", "each"),
)

#: The table of what was judged on dev.
DEV = "dev.tsv"


def _numbers(value: Any, kind: type | UnionType) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, list) and all(isinstance(n, kind) for n in v)
        for v in value.values()
    )


def _is_choices(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "config" in value
        and isinstance(value.get("changes"), dict)
        and all(isinstance(v, str | None) for v in value["changes"].values())
        and _numbers({"seeds": value.get("seeds", [1])}, int)
    )


def _is_forgetting(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"adapted", "full"}


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_few(value: Any) -> bool:
    return isinstance(value, list) or (type(value) is int and value > 0)


def _is_lengths(value: Any) -> bool:
    return _numbers(value, int) and all(n > 0 for v in value.values() for n in v)


def _is_numbers(value: Any, key: str, more: tuple[str, ...] = ()) -> bool:
    """Whether a part says of which configuration, and of how many tasks."""
    if not isinstance(value, dict) or not isinstance(value.get("config"), str):
        return False
    lists = {"seeds": value.get("seeds", [1]), key: value.get(key)}
    known = {"config", "seeds", key, *more} >= value.keys()
    whole = all(type(value.get(one)) is int and value[one] > 0 for one in more)
    return known and whole and _numbers(lists, int)


def _is_newcomers(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    rest = {**value}
    some = rest.pop("utterances", [1])
    return (
        _is_numbers(rest, "after", ("new",))
        and _numbers({"utterances": some}, int)
        and all(number > 0 for number in some)
    )


def _is_each(value: Any) -> bool:
    return _is_numbers(value, "seeds", ("tasks", "together"))


_SEEDS = (lambda value: _numbers(value, int), "CONFIG: [SEED, ...]")

#: Keys of a plan: what their values must be, for the program and in words.
_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "corpus": (lambda value: isinstance(value, str), "a name"),
    "pretrained_model": (lambda value: isinstance(value, str), "a model"),
    "options": (_is_words, "options of run.sh for all runs, [--KEY, VALUE, ...]"),
    "expdir": (lambda value: isinstance(value, str), "a folder in the recipe's"),
    "reference": (lambda value: isinstance(value, str), "the name of a method"),
    "few_tasks": (_is_few, "a list of tasks, or how many"),
    "rates": (
        lambda value: _numbers(value, int | float),
        "CONFIG: [RATE, ...], numbers as 1.0e-3",
    ),
    "lengths": (_is_lengths, "CONFIG: [TIMES, ...], whole numbers above 0"),
    "choices": (
        _is_choices,
        "config: CONFIG, seeds: [SEED, ...], changes: {NAME: OPTIONS}",
    ),
    "runs": _SEEDS,
    "alone": _SEEDS,
    "forgetting": (_is_forgetting, "adapted: CONFIG, full: CONFIG"),
    "counts": (
        lambda value: _is_numbers(value, "numbers"),
        "config: CONFIG, seeds: [SEED, ...], numbers: [HOW_MANY, ...]",
    ),
    "newcomers": (
        _is_newcomers,
        "config: CONFIG, seeds: [SEED, ...], after: [HOW_MANY, ...], new: HOW_MANY, "
        "and perhaps utterances: [HOW_MANY, ...], from 1 on",
    ),
    "each": (
        _is_each,
        "config: CONFIG, seeds: [SEED, ...], tasks: HOW_MANY, together: HOW_MANY",
    ),
}


class BenchError(UserError, RuntimeError):
    """A comparison that cannot be made as asked for."""


@dataclass(frozen=True)
class DevRow:
    """A line of ``dev.tsv``: one training judged on the dev set.

    Attributes:
        part: ``rates``, ``lengths`` or ``choices``.
        method: Name of the configuration.
        setting: The learning rate, by how much longer it trained, or the name of the
            change.
        seed: Of the training.
        tasks: How many tasks there were.
        updates: How many updates.
        cer: The best CER that training found on dev, in percent; of a model without a
            CTC the share of wrong tokens, each after the right ones before it.
    """

    part: str
    method: str
    setting: str
    seed: int
    tasks: int
    updates: int
    cer: float

    @property
    def key(self) -> tuple:
        """What a line stands for."""
        return self.part, self.method, self.setting, self.seed


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        part: One of :data:`PARTS`.
        name: Of the method.
        text: What it is, for people.
        is_done: Whether its rows are there.
        run: Does it, and appends its rows.
    """

    part: str
    name: str
    text: str
    is_done: Callable[[], bool]
    run: Callable[[], None]


def label_of(config: str) -> str:
    """The name that the recipe gives to a configuration's results."""
    return Path(config).stem.removeprefix("train_")


def with_rate(config: Mapping[str, Any], rate: float) -> list[str]:
    """Options that give a configuration another peak rate, its schedule scaled along.

    A schedule that lists rates is scaled; others follow the optimizer's rate.

    Args:
        config: Its keys; without a rate, one is given to it.
        rate: The peak rate.
    """
    words = ["--optim_conf", f"lr={number(rate)}"]
    listed = config.get("scheduler_conf", {}).get("warmup_lr_list")
    if listed:
        scale = rate / config["optim_conf"]["lr"]
        rates = ",".join(number(round(r * scale, 10)) for r in listed)
        words += ["--scheduler_conf", f"warmup_lr_list=[{rates}]"]
    return words


def with_length(config: Mapping[str, Any], times: int) -> list[str]:
    """Options with which a configuration trains so many times as long.

    Raises:
        ConfigError: It does not say how long it trains.
    """
    drawn = longer(config, times)
    words = ["--max_epoch", str(drawn["max_epoch"])]
    steps = drawn.get("scheduler_conf", {}).get("warmup_steps_list")
    if steps:
        listed = ",".join(map(str, steps))
        words += ["--scheduler_conf", f"warmup_steps_list=[{listed}]"]
    return words


def smaller_batch(config: Mapping[str, Any], share: float) -> list[str]:
    """Options for a batch of this share of a configuration's."""
    words: list[str] = []
    for key in ("batch_bins", "batch_size"):
        if key in config:
            words += [f"--{key}", str(max(1, round(config[key] * share)))]
    return words


def number(value: float) -> str:
    """A number as YAML reads it: never 1e-05, which is a word to it."""
    text = f"{value:.10f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def best_on_dev(checkpoint: Path) -> "tuple[float, int]":
    """The best error on dev of a training, in percent, and its number of updates.

    It is the CER; of a model without a CTC, which decodes nothing in training, the
    share of wrong tokens, each after the right ones before it.

    Raises:
        BenchError: The training has not looked at its dev set.
    """
    try:
        stats = read_training(checkpoint)["reporter"]["stats"]
        looks = [epoch["valid"] for epoch in stats.values()]
        if all("cer_ctc" in look for look in looks):
            errors = [look["cer_ctc"] for look in looks]
        else:
            errors = [1.0 - look["acc"] for look in looks]
        updates = max(epoch["train"]["total_count"] for epoch in stats.values())
    except (UserError, KeyError) as error:
        raise BenchError(f"{checkpoint} has no CER of a dev set: {error!r}") from error
    return 100.0 * min(errors), updates


def check_plan(plan: Mapping[str, Any]) -> None:
    """Refuse keys that a plan does not have, and values that they cannot have.

    Raises:
        BenchError: There are some.
    """
    unknown = sorted(map(str, set(plan) - set(_KEYS)))
    if unknown:
        raise BenchError(
            f"the plan has unknown keys: {', '.join(unknown)}; possible are: "
            f"{', '.join(sorted(_KEYS))}"
        )
    for key, (is_possible, expected) in _KEYS.items():
        if key in plan and not is_possible(plan[key]):
            raise BenchError(f"the plan has {key}: {plan[key]!r}: expected {expected}")
    judged = {"rates", "lengths", "choices"}
    if judged & set(plan) and not plan.get("few_tasks"):
        raise BenchError(
            "the plan has rates, lengths or choices: name the tasks for them, "
            "few_tasks: [A, B], or say how many"
        )


def conf_folder(plan: Mapping[str, Any]) -> str:
    """Where in the recipe the files and variants are that a plan names.

    They are those that ``run.sh`` takes for its backbone.
    """
    whisper = plan.get("pretrained_model", "").startswith("whisper:")
    return "conf/whisper" if whisper else "conf"


def decoding_of(plan: Mapping[str, Any]) -> str:
    """The configuration that ``run.sh`` decodes with, by its name."""
    return "decode_greedy" if conf_folder(plan) == "conf" else "decode_beam"


def read_configs(recipe: Path, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations that a plan names, by these names.

    Each is the name of a file or variant in the recipe's :func:`conf_folder`, or the
    path of a file in the recipe.

    Raises:
        BenchError: One cannot be read, or the recipe would call its results otherwise.
    """
    parts = ("rates", "lengths", "runs", "alone")
    named = [name for part in parts for name in plan.get(part, {})]
    conf = recipe / conf_folder(plan)
    one = ("choices", "counts", "newcomers", "each")
    named += [plan[part]["config"] for part in one if part in plan]
    named += plan.get("forgetting", {}).values()
    configs: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(named):
        if not isinstance(name, str):
            raise BenchError(
                f"the plan names {name}: expected the name of a configuration"
            )
        path = recipe / name
        try:
            if not path.is_file():
                path = conf / f"train_{name}.yaml"
                configs[name] = read_config(conf, name)
            else:
                configs[name] = read_yaml(path)
        except ConfigError as error:
            raise BenchError(f"the plan names {error}") from error
        encoder_conf = configs[name].get("encoder_conf") or {}
        label, method = label_of(name), str(encoder_conf.get("adapter", "hra"))
        of_method = label == method or label.startswith(f"{method}_")
        if not of_method or label != label_of(str(path.resolve())):
            raise BenchError(
                f"the plan names {name}: the recipe would call its results otherwise: "
                f"give a file (no link) train_{method}.yaml or "
                f"train_{method}_....yaml, or a variant of such a name"
            )
    return configs


def best_model(folder: Path) -> Path:
    """The checkpoint that the recipe decodes with.

    Raises:
        BenchError: There is none.
    """
    names = [f"valid.{key}" for key in ("cer_ctc.ave", "cer_ctc.best", "acc.ave")]
    for name in (*names, "valid.acc.best", "valid.loss.ave"):
        if (folder / f"{name}.pth").exists():
            return folder / f"{name}.pth"
    raise BenchError(f"there is no trained model in {folder}: run the part runs first")
