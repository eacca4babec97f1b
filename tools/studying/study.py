"""A study from its file to its summary."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tools.studying.counts import ALL, CONFIRM, SCREEN, ScoredSet
from tools.studying.plan import Plan, read_plan
from tools.studying.runner import Runner, find_slots
from tools.studying.stages import EPOCHS, Cell, Stage, find_cells, make_data
from tools.studying.summary import TITLES, Result, summarise, write_summary
from utils.errors import OptionError, UserError
from utils.files import read_text, write_text
from utils.locks import LOCK, exclusive
from utils.text import plural, progress


def run_study(options: Namespace) -> Path:
    """Run what is not finished of what tools/study.py is asked for; return the study's folder.

    A `UserError` at the end where stages failed; an `InterruptionError` where a signal came. What
    is finished by then is in the summary.
    """
    plan = read_plan(options.study)
    arms = options.arms or list(plan.arms)
    for name in arms:
        if name not in plan.arms:
            raise OptionError(f"--arms {name}: no such arm; there are {', '.join(plan.arms)}")
    seeds, folder = options.seeds or plan.seeds, options.out / plan.name
    with exclusive(folder / LOCK, "this study"):
        study = Study(plan, folder, seeds)
        asked = [cell for cell in study.cells if cell.arm in arms and cell.seed in seeds]
        runner = Runner([s for cell in asked for s in cell.needs], find_slots(options.jobs))
        number = sum(stage.script == "train" for stage in runner.waiting)
        said = f"{plural(len(runner.waiting), 'stage')} to do, {plural(number, 'training')}"
        print(f"{plan.question}\n{plural(len(asked), 'cell')}, {said}")
        try:
            with runner:
                for _ in progress(_trainings(runner, study, asked), plan.name, "training", number):
                    pass
        finally:
            study.write()
    if runner.failed:
        first = next(reason for reason in runner.failed.values() if reason)
        raise UserError(
            f"{plural(len(runner.failed), 'stage')} failed or could not start, the first by: "
            f"{first}; the same command goes on"
        )
    return folder


def _trainings(runner: Runner, study: "Study", asked: Sequence[Cell]) -> Iterator[Stage]:
    """Collect what ends, and yield the trainings, which take the time."""
    for stage in runner:
        study.collect([cell for cell in asked if stage in cell.tests.values()])
        if stage.script == "train":
            yield stage


class Study:
    """A study on disk, and the results that it has so far."""

    def __init__(self, plan: Plan, folder: Path, seeds: Sequence[int]) -> None:
        self.plan, self.folder, self._counts = plan, folder, folder / "counts"
        self.seeds = sorted({*plan.seeds, *seeds})
        roots = make_data(plan, folder / "data")
        self.sets = {name: ScoredSet.open(root, plan.divide) for name, root in roots.items()}
        for name, scored in self.sets.items():
            if plan.score not in scored.titles:
                raise OptionError(f"score {plan.score}: data {name} has {', '.join(scored.titles)}")
        self.cells = find_cells(plan, roots, self.seeds, folder / "stages")
        for cell in self.cells:
            for subset in self._subsets(cell):
                self.sets[cell.data].kept(cell, subset, self._counts)  # may be refused
        self.results: dict[tuple[str, str], Result] = {}
        self.collect(self.cells, quietly=True)
        asked, known = folder / "study.toml", any(folder.glob("stages/*/stage.json"))
        if not known or not asked.exists():  # what is asked is written before anything is known
            write_text(asked, plan.text)

    def _subsets(self, cell: Cell) -> list[str]:
        if not self.plan.divide:
            return [ALL]
        return [SCREEN, CONFIRM] if cell.arm in self.plan.confirmed else [SCREEN]

    def collect(self, cells: Sequence[Cell], quietly: bool = False) -> None:
        """Count the masks of those cells that are finished, and print a line about each."""
        for cell in cells:
            if not all(test.record for test in cell.tests.values()):
                continue
            for subset in self._subsets(cell):
                scored = self.sets[cell.data]
                tallies = scored.count(cell, subset, self._counts)
                scores = {epoch: scored.scores(tallies[epoch]) for epoch in EPOCHS}
                self.results[str(cell), subset] = Result(cell, subset, tallies, scores)
            if not quietly:
                found = self.results[str(cell), self._subsets(cell)[0]].scores
                shown = (f"{100 * found[e][self.plan.score]:.2f} {e} epoch" for e in EPOCHS)
                tqdm.write(f"{cell}: {TITLES[self.plan.score]} {', '.join(shown)}")

    def write(self) -> None:
        """Write what is known so far, and print it."""
        places = [(str(cell), subset) for cell in self.cells for subset in self._subsets(cell)]
        results = [self.results[place] for place in places if place in self.results]
        if not results:
            return
        summary = summarise(self.plan, results, self._notes(len({str(r.cell) for r in results})))
        write_summary(self.folder, summary, results)

    def _notes(self, finished: int) -> list[str]:
        notes = []
        for name, scored in self.sets.items():
            sizes = {subset: len(names) for subset, names in scored.subsets.items()}
            said = f"{sizes.get(SCREEN)} pairs to screen on and {sizes.get(CONFIRM)} to confirm on"
            if ALL in sizes:
                said = f"{sizes[ALL]} pairs, undivided: what was chosen by them is not confirmed"
            notes.append(f"{name}: {scored.label}, {said}")
        if finished < len(self.cells):
            notes.append(f"UNFINISHED: {finished} of {plural(len(self.cells), 'cell')}")
        more = sorted(set(self.seeds) - set(self.plan.seeds))
        if more:
            notes.append(f"seeds beyond those of the study's file: {', '.join(map(str, more))}")
        if read_text(self.folder / "study.toml") != self.plan.text:
            notes.append("CHANGED: the study's file was edited; study.toml is as it was at first")
        return notes
