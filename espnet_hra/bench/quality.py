"""The comparison of adapters: every method on the same backbone, tasks and updates.

What is run stands in a plan (``conf/quality.yaml`` of the recipe). Each run is a run of
the recipe, so that any row can be made alone: ``--only`` its name. In this order:

1. *rates*: each method at a few learning rates, on some tasks, judged on dev;
2. *lengths*: the same with several times the updates, until dev stops falling;
3. *choices*: changes of one method, judged in the same way;
4. *runs*: all tasks, several seeds, decoded and scored on dev and test;
5. *alone*: one training for each task, whose adapters share nothing;
6. *forgetting*: what the adapted models make of speech that they were not adapted to;
7. *counts*, *newcomers* and *each*: trainings of 1, 2, 5 ... of the tasks, new tasks
   after these, and some tasks each with a model of its own, see
   :mod:`espnet_hra.bench.quality_counts`.

The rates that are found stand in the configurations: this program says where one has
another, and changes none. It also says where the best rate is the last of its grid, or
where the longest training was still the best. A run on some of the tasks has the
updates of a full one, with batches that are smaller in proportion: a task hears as
much.

What is done is not done again: it has left its rows in ``dev.tsv`` or ``results.tsv``.

::

    espnet-hra bench quality
    espnet-hra bench quality --only lora_r6 --parts rates runs
    espnet-hra bench quality --plan conf/quality_whisper.yaml
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_hra.bench.quality_plan import PARTS, BenchError
from espnet_hra.bench.quality_runs import Comparison
from espnet_hra.errors import ConfigError, UserError
from espnet_hra.files.config import read_yaml
from espnet_hra.report.results import TSV

#: Options of ``run.sh`` that cannot be the same for all runs.
_OF_THE_PLAN = {
    *("--corpus", "--expdir", "--method", "--tasks", "--seed"),
    *("--asr_config", "--variant", "--asr_args", "--asr_tag"),
}


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="espnet-hra bench quality",
        description="Compare adapters on one frozen backbone: the runs of a plan, each "
        "a run of the recipe. What is done is not done again; the same command goes on "
        "after a stop. Results: EXPDIR/CORPUS/{RESULTS.md,results.tsv,dev.tsv}.",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        help="the recipe's folder (default: this one, or egs2/hra_asr in it)",
    )
    parser.add_argument(
        "--plan", type=Path, help="what to run (default: RECIPE/conf/quality.yaml)"
    )
    parser.add_argument(
        "--expdir", type=Path, help="where all goes (default: the plan's, RECIPE/exp)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these methods, e.g. hra lora_r6"
    )
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument(
        "--list", action="store_true", help="only say what there is to do"
    )
    parser.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        metavar="-- OPTION ...",
        help="options of run.sh for all runs, e.g. -- --autocast none",
    )
    return parser


def find_recipe(given: Path | None) -> Path:
    """The recipe's folder.

    Raises:
        BenchError: There is none.
    """
    for folder in [given] if given else [Path("."), Path("egs2/hra_asr")]:
        if (folder / "hra.sh").is_file() and (folder / "run.sh").is_file():
            return folder.resolve()
    raise BenchError(
        f"{given or Path.cwd()}: there is no run.sh of the recipe; name its folder "
        "with --recipe, or make one with `espnet-hra recipe DEST`"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet, and write the report.

    Returns:
        The exit status: 1 if a run failed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = get_parser().parse_args(words)
    recipe = find_recipe(args.recipe)
    path = args.plan or recipe / "conf" / "quality.yaml"
    plan = read_yaml(path, BenchError)
    expdir = (args.expdir or recipe / str(plan.get("expdir", "exp"))).resolve()
    options = [word for word in args.options if word != "--"]
    comparison = Comparison(recipe, plan, options, expdir)
    for word in comparison.options:
        if word.partition("=")[0] in _OF_THE_PLAN:
            raise BenchError(
                f"{word}: the plan decides on that for each run; give one of your own "
                f"with --plan (this one: {path})"
            )
    steps = comparison.steps(args.parts)
    names = {step.name for step in steps}
    missing = sorted(set(args.only or ()) - names)
    if missing:
        raise ConfigError(
            f"--only {' '.join(missing)}: the plan has no such method in these parts; "
            f"it has: {', '.join(sorted(names))}"
        )
    if args.only:
        steps = [step for step in steps if step.name in args.only]
    todo = [step for step in steps if args.again or not step.is_done()]
    print(f"{len(steps)} runs, {len(steps) - len(todo)} of them done")
    failed, start = [], time.monotonic()
    for i, step in enumerate(todo, 1):
        print(f"{time.strftime('%H:%M:%S')} [{i}/{len(todo)}] {step.part}: {step.text}")
        if args.list:
            continue
        try:
            step.run()
        except UserError as error:
            failed.append(step)
            print(f"    failed: {error}", file=sys.stderr)
        spent = (time.monotonic() - start) / 60
        left = spent / i * (len(todo) - i)
        print(f"    {spent:.0f} min so far, about {left:.0f} min left", flush=True)
    if args.list:
        return 0
    for method, rate in comparison.differing_rates().items():
        print(f"{method}: the best rate on dev is {rate:g}, and its file has another")
    for method, said in comparison.open_ends().items():
        print(f"{method}: {said}")
    if (comparison.work / TSV).exists():
        command = shlex.join(["espnet-hra", "bench", "quality", *words])
        written, *_ = comparison.report(command)
        print(f"Results: {written}")
    if failed:
        print(f"{len(failed)} of {len(todo)} runs failed; the same command tries again")
    return 1 if failed else 0
