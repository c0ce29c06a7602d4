"""The runs of a comparison: what each does, and whether its rows are there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_hra.bench.quality_counts import counts, each, newcomers
from espnet_hra.bench.quality_page import best_rates, dev_tables, hours, open_ends
from espnet_hra.bench.quality_plan import (
    DEV,
    PARTS,
    BenchError,
    DevRow,
    Step,
    best_model,
    best_on_dev,
    check_plan,
    conf_folder,
    decoding_of,
    label_of,
    number,
    read_configs,
    smaller_batch,
    with_length,
    with_rate,
)
from espnet_hra.files.tables import read_table, write_table
from espnet_hra.report import page
from espnet_hra.report.health import NEEDS_A_LOOK
from espnet_hra.report.results import FROZEN, TSV, Results, Row, merge, read_params

#: The split of the speech that the backbone knows, and its data set.
KNOWN, KNOWN_SET = "backbone", "backbone_test"


class Comparison:
    """The steps of a plan, in a recipe's folder.

    Args:
        recipe: The folder with ``run.sh``.
        plan: The plan.
        options: Of ``run.sh``, for all runs.
        expdir: As of ``run.sh``.

    Raises:
        BenchError: The plan cannot be run: see :func:`check_plan`,
            :func:`read_configs`.
    """

    def __init__(
        self,
        recipe: Path,
        plan: Mapping[str, Any],
        options: Sequence[str],
        expdir: Path,
    ):
        check_plan(plan)
        self.recipe, self.plan = recipe, plan
        self.options = [*plan.get("options", ()), *options]
        self.corpus = plan.get("corpus", "debian_voices")
        self.expdir = expdir
        self.work = expdir / self.corpus
        self.conf, self.decoding = conf_folder(plan), decoding_of(plan)
        self.configs = read_configs(recipe, plan)

    @property
    def measure(self) -> str:
        """What is judged on dev, see :func:`best_on_dev`."""
        return "CER" if self.conf == "conf" else "error of tokens"

    # --------------------------------------------------------------------- steps

    def named(self, config: str) -> tuple[str, ...]:
        """The options of ``run.sh`` that choose a configuration."""
        for path in (f"{self.conf}/train_{config}.yaml", config):
            if (self.recipe / path).is_file():
                return "--asr_config", path
        return "--variant", config

    def steps(self, parts: Sequence[str] = PARTS) -> list[Step]:
        """Everything that the plan asks for in these parts."""
        made = {
            "rates": self._rates,
            "lengths": self._lengths,
            "choices": self._choices,
            "runs": self._runs,
            "alone": self._alones,
            "forgetting": self._forgetting,
            "counts": lambda: counts(self),
            "newcomers": lambda: newcomers(self),
            "each": lambda: each(self),
        }
        return [step for part in PARTS if part in parts for step in made[part]()]

    def _rates(self) -> Iterator[Step]:
        for config, rates in self.plan.get("rates", {}).items():
            for rate in rates:
                extra = with_rate(self.configs[config], rate)
                yield self._judged("rates", config, number(rate), 1, extra)

    def _lengths(self) -> Iterator[Step]:
        for config, lengths in self.plan.get("lengths", {}).items():
            for times in lengths:
                extra = with_length(self.configs[config], times)
                yield self._judged("lengths", config, str(times), 1, extra)

    def _choices(self) -> Iterator[Step]:
        choices = self.plan.get("choices", {})
        for name, extra in choices.get("changes", {}).items():
            for seed in choices.get("seeds", [1]):
                words = shlex.split(extra or "")
                yield self._judged("choices", choices["config"], name, seed, words)

    def _runs(self) -> Iterator[Step]:
        runs = self.plan.get("runs", {})
        for seed in sorted({seed for seeds in runs.values() for seed in seeds}):
            for config, seeds in runs.items():
                if seed in seeds:
                    yield self._full(config, seed)

    def _alones(self) -> Iterator[Step]:
        for config, seeds in self.plan.get("alone", {}).items():
            for seed in seeds:
                yield self._alone(config, seed)

    def _forgetting(self) -> Iterator[Step]:
        if "forgetting" in self.plan:
            adapted, full = (self.plan["forgetting"][k] for k in ("adapted", "full"))
            yield self._known(FROZEN, None, "frozen")
            yield self._known(label_of(adapted), adapted, "off")
            for task in self.tasks():
                yield self._known(f"{label_of(full)}_{task}", full, task)

    def _judged(
        self, part: str, config: str, setting: str, seed: int, extra: Sequence[str]
    ) -> Step:
        """A training on some of the tasks, judged by its CER on dev."""
        name = label_of(config)
        tag = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{part}_{name}_{setting}_seed{seed}")

        def is_done() -> bool:
            key = (part, name, setting, seed)
            return any(row.key == key for row in self._dev_rows())

        def run() -> None:
            few = self._few_tasks()
            share = len(few) / len(self.tasks())
            words = [*smaller_batch(self.configs[config], share), *extra]
            self.recipe_run(
                *(*self.named(config), "--seed", str(seed), "--asr_tag", tag),
                *("--tasks", " ".join(few), "--asr_args", " ".join(words)),
                *("--stop_stage", "11", "--skip_stages", "9"),
            )
            cer, updates = best_on_dev(self.work / f"asr_{tag}" / "checkpoint.pth")
            row = DevRow(part, name, setting, seed, len(few), updates, round(cer, 2))
            rows = merge(self._dev_rows(), [row])
            write_table(self.work / DEV, rows, DevRow)
            print(f"    {self.measure} on dev {row.cer:.2f} %")

        return Step(part, name, f"{name}, {setting}, seed {seed}", is_done, run)

    def _full(self, config: str, seed: int) -> Step:
        """A run of the recipe with all tasks."""
        name = label_of(config)

        def run() -> None:
            self.recipe_run(*self.named(config), "--seed", str(seed))

        return Step(
            "runs", name, f"{name}, seed {seed}", lambda: self._scored(name, seed), run
        )

    def _alone(self, config: str, seed: int) -> Step:
        """A run for each task; what they have is counted as each task's own."""
        name = label_of(config)

        def run() -> None:
            for task in self.tasks():
                tag = f"{name}_{task}_seed{seed}"
                self.recipe_run(
                    *(*self.named(config), "--seed", str(seed), "--asr_tag", tag),
                    *("--tasks", task, "--stop_stage", "12", "--skip_stages", "9"),
                )
                folder, dump = self.work / f"asr_{tag}", f"dump_tasks-{task}"
                shared, own = read_params(folder / "params.json")
                self.score(
                    *("--method", name, "--seed", str(seed)),
                    *("--shared_params", "0"),
                    *("--task_params", str(shared + own[task]), "--task", task),
                    *self._splits("--ref", self.work / dump),
                    *self._splits("--hyp", folder / self.decoding),
                )

        return Step(
            "alone", name, f"{name}, seed {seed}", lambda: self._scored(name, seed), run
        )

    def _known(self, name: str, config: str | None, task: str) -> Step:
        """Decoding of the speech that the backbone was trained to know."""
        dump = self.work / "dump_backbone"

        def is_done() -> bool:
            return any((row.method, row.split) == (name, KNOWN) for row in self._rows())

        def run() -> None:
            if not (dump / KNOWN_SET / "utt2task").exists():
                self._prepare_known(dump)
            options: list[str] = []
            if config is None:
                lines = (self.work / "backbone.path").read_text().split("\n")
                model_config, model = lines[0], lines[1]
                sizes = ["--shared_params", "0", "--task_params", "0"]
            else:
                folder = self.work / f"asr_{label_of(config)}_seed1"
                model_config = str(folder / "config.yaml")
                model = str(best_model(folder))
                shared, own = read_params(folder / "params.json")
                size = max(own.values())
                sizes = ["--shared_params", str(shared), "--task_params", str(size)]
                options = ["--task", task]
                if task == "off":
                    options = ["--without_task", "true"]
            whisper = self.conf != "conf"
            if whisper:  # of this data the tasks are the languages
                spoken = f"{dump / KNOWN_SET}/utt2task,utt2lang,text"
                options += ["--data_path_and_name_and_type", spoken]
            decoded = self.work / "known" / name
            self._program(
                *("-m", "espnet_hra.bin.asr_inference"),
                *("--config", f"{self.conf}/{self.decoding}.yaml"),
                *("--asr_train_config", model_config, "--asr_model_file", model),
                "--data_path_and_name_and_type",
                f"{dump / KNOWN_SET}/wav.scp,speech,sound",
                *("--output_dir", str(decoded), *options),
            )
            if whisper:
                self._program(
                    *(
                        "local/fold_decoded.py",
                        "--like",
                        str(dump / KNOWN_SET / "text"),
                    ),
                    f"{decoded}/1best_recog/text",
                )
            self.score(
                *("--method", name, "--seed", "0" if config is None else "1", *sizes),
                *("--ref", f"{KNOWN}={dump / KNOWN_SET / 'text'}"),
                *("--hyp", f"{KNOWN}={decoded}/1best_recog/text"),
                *("--utt2task", str(dump / KNOWN_SET / "utt2task")),
            )

        return Step("forgetting", name, f"{name} on what it knew", is_done, run)

    def _prepare_known(self, dump: Path) -> None:
        shell = '. ./db.sh && bash local/data.sh --downloads "${HRA_DOWNLOADS}" "$@"'
        self._run(
            *("bash", "-c", shell, "data.sh", "--datadir", "data"),
            *("--corpus", self.corpus, "--part", "backbone"),
            PYTHON=self._python(),
        )
        self._program(
            *("local/format_wav_scp.py", "--data", f"data/{self.corpus}"),
            *("--dump", str(dump), "--sets", KNOWN_SET),
        )

    # -------------------------------------------------------------------- tables

    def _rows(self) -> list[Row]:
        return read_table(self.work / TSV, Row)

    def _dev_rows(self) -> list[DevRow]:
        return read_table(self.work / DEV, DevRow)

    def has_rows(self, name: str, seed: int, number: int) -> bool:
        """Whether a training of so many tasks has rows for all of them."""
        return len(self.scored_tasks(name, seed)) >= number

    def scored_tasks(self, name: str, seed: int) -> set[str]:
        """Tasks that have a row on the test set."""
        return {
            row.task
            for row in self._rows()
            if (row.method, row.split, row.seed) == (name, "test", seed)
        }

    def _scored(self, name: str, seed: int) -> bool:
        found = self.scored_tasks(name, seed)
        return bool(found) and found >= set(self.tasks())

    def tasks(self) -> list[str]:
        """All tasks of the corpus, once the recipe has prepared them."""
        path = self.work / "dump" / "tasks"
        if not path.exists():
            self.recipe_run("--method", "none")
        return path.read_text(encoding="utf-8").split()

    def _few_tasks(self) -> list[str]:
        """The tasks of what is judged on dev; a number of them is spread over all."""
        few, tasks = self.plan["few_tasks"], self.tasks()
        if isinstance(few, list):
            return few
        few = min(few, len(tasks))
        return [tasks[i * len(tasks) // few] for i in range(few)]

    def _splits(self, option: str, folder: Path) -> list[str]:
        return [
            word
            for split in ("dev", "test")
            for word in (option, f"{split}={folder / split / 'text'}")
        ]

    # ------------------------------------------------------------------ programs

    def recipe_run(self, *options: str) -> None:
        """Run the recipe with these options and those of the plan."""
        model = self.plan.get("pretrained_model")
        base = () if model is None else ("--pretrained_model", model)
        self._run(
            *("bash", "run.sh", "--corpus", self.corpus, "--expdir", str(self.expdir)),
            *(*base, *options, *self.options),
        )

    def _program(self, *words: str) -> None:
        self._run(self._python(), *words)

    def score(self, *options: str) -> None:
        """Append rows to the tables; options of ``espnet-hra score``."""
        self._program(
            *("-m", "espnet_hra.cli", "score", "--report", "false"),
            *("--out_dir", str(self.work), *options),
        )

    def _python(self) -> str:
        if "--python" in self.options:
            return self.options[self.options.index("--python") + 1]
        return sys.executable

    def _run(self, *words: str, **environment: str) -> None:
        """Run a program in the recipe's folder; its output goes to a log."""
        log = self.work / "logs" / "bench_quality.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # run.sh shall find the Python that this is.
        binaries = str(Path(sys.executable).parent)
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"\n+ {shlex.join(words)}\n")
            file.flush()
            start = file.tell()
            status = subprocess.run(
                words,
                cwd=self.recipe,
                env={**os.environ, "PATH": path, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            ).returncode
        if status not in (0, NEEDS_A_LOOK):
            with open(log, encoding="utf-8", errors="replace") as file:
                file.seek(start)
                said = [line.strip() for line in file if line.strip()]
            # What the recipe says last is where to read more.
            said = [line for line in said if not line.startswith("The whole log:")]
            last = said[-1] if said else "no message"
            raise BenchError(
                f"{words[0]} ended with status {status}: {last} (see {log})"
            )

    # -------------------------------------------------------------------- report

    def report(self, command: str) -> list[Path]:
        """Write RESULTS.md with everything that is there."""
        results = Results.read(self.work)
        steps = self.steps()
        missing = [step for step in steps if not step.is_done()]
        note = None
        if missing:
            note = (
                f"Of the {len(steps)} runs of the plan, {len(missing)} are still to "
                "come: rows with fewer seeds than others, and sizes that are not here."
            )
        opening = page.head(self.corpus, command, note)
        closing = dev_tables(self._dev_rows(), self.differing_rates(), self.measure)
        closing += "\n" + hours(self.work / "times.tsv")
        reference = self.plan.get("reference")
        if reference not in {
            r.method for r in results.rows if r.split == results.split
        }:
            reference = None  # is still to come
        return page.write(results, self.work, opening, closing, reference=reference)

    def open_ends(self) -> dict[str, str]:
        """Methods whose best rate or length is the last that was tried, in words."""
        return open_ends(self._dev_rows())

    def differing_rates(self) -> dict[str, float]:
        """Methods whose file has another rate than the best on dev, and the latter."""
        best = best_rates(self._dev_rows())
        return {
            label_of(config): float(best[label_of(config)].setting)
            for config in self.plan.get("rates", {})
            if label_of(config) in best
            and float(best[label_of(config)].setting)
            != self.configs[config]["optim_conf"]["lr"]
        }
