"""What a release takes of a finished comparison: the best model with R-Drop and its baseline, each in a folder as it is
pushed, with a card that links both and the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import ModelCard

from ..errors import InputError
from ..hub.card_data import is_hub_name
from ..hub.folder import CARD, read_checkpoint
from ..report import FinishedRun, Report, report_folder
from ..report.arms import PLAIN, RDROP
from ..report.quantities import Quantity, first_score, quantities_of
from ..report.runs import pair_runs
from ..report.tables import difference, markdown_table, mean_std, named, p_value, short
from ..run_folder import ARMS_FILE, RESULTS, write_text

_STAGED, _REPORT = "hub", PurePosixPath("report/report.md")
_OURS_BEFORE = "\n## R-Drop\n"  # the section of a card that ours stands before


@dataclass(frozen=True)
class Pair:
    """The models of one seed with and without R-Drop, and what the comparison says of all seeds.

    Attributes:
        folder: of the comparison.
        names: of the repositories, the one with R-Drop first, "OWNER/NAME".
        runs: those with R-Drop, one a seed.
        place: of the run among these whose score is the best, of the seeds that both arms know; of equal ones, the
            first.
        score: the one that decides, of all seeds.
    """

    folder: Path
    names: tuple[str, str]
    runs: Sequence[FinishedRun]
    place: int
    score: Quantity

    @classmethod
    def best(cls, folder: Path, names: tuple[str, str]) -> Pair:
        """The best pair of a comparison's finished runs."""
        if not (folder / ARMS_FILE).is_file():
            raise InputError(f"{folder}: holds no comparison ({ARMS_FILE}), as --compare_baseline leaves it")
        found = [path.parent for arm in (PLAIN, RDROP) for path in folder.glob(f"{arm}-seed*/{RESULTS}")]
        baseline, rdrop, _ = pair_runs(map(FinishedRun.read, found))
        score = first_score(quantities_of(baseline, rdrop))
        if score is None:
            raise InputError(f"{folder}: its runs have no score in common, so none can be called the best")
        pairs = zip(score.baseline, score.rdrop, strict=True)
        known = [place for place, pair in enumerate(pairs) if None not in pair]  # no model that broke down is pushed
        best = (max if score.higher_is_better else min)(known, key=lambda place: score.rdrop[place])
        return cls(folder, names, rdrop, best, score)

    @property
    def seed(self) -> int:
        """The seed of both models."""
        return self.runs[self.place].seed

    def row(self) -> dict[str, str]:
        """Its row in the table of results, by the names of the columns."""
        run = self.runs[self.place]
        return {
            "task": run.name,
            "base model": self._public(str(run.settings.get("model_name_or_path"))),
            "alpha": f"{run.alpha:g}",
            "seeds": str(self.score.difference.n),
            "score": named(self.score),
            "baseline": mean_std(self.score, "baseline"),
            "R-Drop": mean_std(self.score, "rdrop"),
            "difference": difference(self.score),
            "p": p_value(self.score.difference.p_value) or "-",
        }

    def stage(self, token: str | None = None) -> list[Path]:
        """Write the folders that are pushed, in the order of `names`, and the report anew. The weights are links."""
        report = report_folder(self.folder)
        staged = []
        for arm, repo_id in zip((RDROP, PLAIN), self.names, strict=True):
            source, name = self.folder / f"{arm}-seed{self.seed}", repo_id.split("/")[1]
            folder = self.folder / _STAGED / name
            shutil.rmtree(folder, ignore_errors=True)
            (folder / _REPORT).parent.mkdir(parents=True)
            checkpoint = read_checkpoint(source, token).copied_to(folder, source)
            for file, content in checkpoint.contents(repo_id).items():
                if isinstance(content, bytes):
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    (folder / file).write_bytes(content)
            write_text(folder / _REPORT, self._public(report.markdown()))
            for picture in report.pictures:
                shutil.copy(picture, (folder / _REPORT).parent)
            (folder / CARD).touch()  # a run whose card could not be written has none
            card = ModelCard((folder / CARD).read_text(encoding="utf-8-sig"), ignore_metadata_errors=True)
            card.data.model_name = name
            before, mark, after = card.text.replace(f"# {source.name}\n", f"# {name}\n", 1).partition(_OURS_BEFORE)
            card.text = f"{before}\n{self._section(arm, report)}{mark}{after}"
            write_text(folder / CARD, str(card))
            staged.append(folder)
        return staged

    def _public(self, text: str) -> str:
        """A text without the path of a base model that is not on the Hub."""
        base = str(self.runs[self.place].settings.get("model_name_or_path")).rstrip("/")
        return text if is_hub_name(base) else text.replace(base, "a local model")

    def _section(self, arm: str, report: Report) -> str:
        """The section of a card on the two models, and on the comparison that they are from."""
        links = [f"[{name}](https://huggingface.co/{name})" for name in self.names]
        score, seeds = self.score, self.score.difference.n
        means = [mean_std(score, "rdrop"), mean_std(score, "baseline")]
        chosen = [short(score.rdrop[self.place]), short(score.baseline[self.place])]
        table = markdown_table(
            [named(score), f"R-Drop: {links[0]}", f"baseline: {links[1]}"],
            [[f"seeds: {seeds}", *means], [f"these two, seed {self.seed}", *chosen]],
        )
        this, other = ("with R-Drop", links[1]) if arm == RDROP else ("without R-Drop", links[0])
        pictures = [f"![{caption}]({_REPORT.with_name(path.name)})" for path, caption in report.pictures.items()]
        text = (
            f"This is the model {this}; the other is {other}. Both were trained on the same rows in the same order. "
            f"Of {seeds} seeds, theirs has the best {score.name} with R-Drop: expect other seeds nearer to the mean. "
            f"{report.sentences[0]} [The whole report]({_REPORT})."
        )
        return "\n\n".join(["## R-Drop and its baseline", table, text, *pictures]) + "\n"
