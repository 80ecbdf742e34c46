"""Runs over many cases: settings, a folder for each case, resuming, tables and the page of all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import typer

from dmrifit._utils.counts import counted, first_few
from dmrifit._utils.progress import progress
from dmrifit._utils.text_files import check_file, read_object, read_sealed, sealed
from dmrifit.cli.console import FLAGGED, error_message
from dmrifit.cli.options import given, is_pattern, named_images, refuse_files, resumable
from dmrifit.cli.options import say as tell
from dmrifit.cli.workers import run_tasks
from dmrifit.io.atomic_files import FileSet, check_room, finish_interrupted, write_text
from dmrifit.io.tables import TABLE, csv_text, read_texts, save_table, table_text
from dmrifit.report import page as pages

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Table of the cases that failed.
FAILED = "failed.tsv"

_Case = TypeVar("_Case")

#: With this option finished cases would be done again.
_RESUMED = " (without --overwrite)"

#: Endings of files that tables of synthetic cases name.
_CASE_FILES = (".nii.gz", ".bval", ".bvec", ".tsv")


@dataclass(frozen=True)
class RunOptions:
    """
    Where a run over cases writes what, its workers, and with which code it ends.

    Options:
    jobs: Cases worked on in parallel; −1 for one per core.
    """

    out: Path
    jobs: int = 1
    cluster: str | None = None
    fail_on_flag: bool = False
    figure: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        # Before models and tables are read.
        if self.out.is_file():
            raise ValueError(f"--out {self.out} is a file; name a folder")

    @property
    def draws(self) -> bool:
        """Whether figures are asked for, and the packages for them and for pages are installed."""
        return self.figure and can_draw()


class RunPage(NamedTuple):
    """What the page of a run shows: the table of all cases, and the pictures of each."""

    title: str
    overview: Sequence[Any]
    pictures: Sequence[tuple[str, Sequence[Any]]]
    note: str = ""
    notice: str = ""
    script: str = ""
    style: str = ""


@dataclass(frozen=True)
class CaseRun:
    """
    A run over many cases: `record` marks a case as finished, the other files tell of all cases.

    The path of a record holds {name} for the folder of its case. `row` gives the row of a case in
    the `table` by the name of its folder and its record, `page` the page of all; `columns` is the
    file that describes the table, `lesions` the table of the lesions in the records. Where
    pictures are asked for, a case without its `pictures` is processed again. What an earlier run
    left of a case that fails is removed: its record, `pictures` and `files` (patterns of names).
    Of a case, `errors` are a problem to list, `line` is shown when it is done, and `flag` is the
    field of its record that flags it. `bids` is the glob of the images in the folders of BIDS
    subjects, `note` what the page of a run without `page` says below its table.
    """

    record: str
    table: str
    row: Callable[[str, dict[str, Any]], dict[str, Any]]
    page: Callable[[Path, dict[str, dict[str, Any]], Any], RunPage] | None = None
    columns: str = ""
    lesions: str = ""
    digits: int | None = None
    pictures: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = (FileNotFoundError, ValueError)
    line: Callable[[dict[str, Any]], str] = lambda _: ""
    flag: str = ""
    noun: str = "case"
    bids: str = ""
    note: str = ""

    def named_cases(
        self,
        paths: Sequence[Path],
        images: Sequence[str],
        options: Mapping[str, object] | None = None,
    ) -> tuple[Path | list[Path], bool]:
        """
        Find what a command names: an image, a table, a folder, or many images; tell whether many.

        Prints which cases there are, and how many have further images. `options` name files, which
        are for a single image; `images` are the columns of images that a table may have.
        """
        from dmrifit.cohort.bids_folder import is_bids_folder
        from dmrifit.io.case_tables import folder_rows, folder_summary, folder_table

        path = paths[0]
        table = folder_table(path)
        are_images = len(paths) > 1 or is_pattern(path) or (is_bids_folder(path) and table == path)
        is_table = path.is_dir() or path.suffix.lower() in (".tsv", ".csv")
        words = first_few([str(path) for path in paths])
        if are_images or is_table:
            refuse_files(words, options or {})
        source = named_images(paths, self.bids) if are_images else path
        if are_images or (path.is_dir() and table == path):
            typer.echo(folder_summary(words, folder_rows(source, images)), err=True)
        elif path.is_dir():
            typer.echo(f"using {table}", err=True)
        else:
            check_file(path)
        if (path / FAILED).is_file():
            # A line for each, below that of the columns.
            n_failed = counted((path / FAILED).read_bytes().count(b"\n") - 1, self.noun)
            tell(f"{n_failed} failed when the folder was written: {path / FAILED}")
        return source, are_images or is_table

    def run(
        self,
        cases: Sequence[_Case],
        settings: Mapping[str, Any],
        options: RunOptions,
        *,
        names: Callable[[Any], Mapping[str, str]] = lambda case: {"name": case.name},
        work: Callable[[_Case, Path], dict[str, Any]],
        inputs: Callable[[_Case], Mapping[str, Any]],
        is_whole: Callable[[_Case, dict[str, Any]], bool] = lambda case, record: True,
        say: Callable[[dict[str, dict[str, Any]]], Iterable[str]],
        failed: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """
        Process cases that an earlier run did not finish, write tables and page, print the result.

        `names` gives the name of a case and of its patient, if that is known; `inputs` its files
        or arrays: a case is finished where its record holds their description, and `is_whole`.
        `failed` are the rows that could not be read. `say` makes lines of the records by folder.
        Cases that fail are listed in failed.tsv with their problem; ValueError if all fail. What
        is finished is written also when the run ends early, so that it can be looked at.
        """
        from dmrifit.io.case_tables import file_stems
        from dmrifit.io.digests import describe

        out = options.out
        # Before long work.
        _say_failed(failed if cases else failed[1:])
        if failed and not cases:
            # Nothing of an earlier run is removed: the disk of all files may be away for a while.
            raise ValueError(failed[0]["problem"])
        # Rows that failed come first in the table of failures.
        rows = [*failed, *map(names, cases)]
        folders = [row["name"] for row in rows]
        if rows and "patient" in rows[0]:
            # Rows that failed count too: their files are removed, so no two may share a folder.
            folders = file_stems([(row["patient"], row["name"]) for row in rows])
        pattern = self.record.format(name="*")
        begin_run(out, settings, options.overwrite, results=self._results(), records=pattern)
        problems = {name: row["problem"] for name, row in zip(folders, failed, strict=False)}
        records: dict[str, dict[str, Any]] = {}
        tasks: list[tuple[str, _Case]] = []
        pictures = self.pictures if options.draws else ()
        for name, case in zip(folders[len(failed) :], cases, strict=True):
            record: dict[str, Any] = {}
            if not options.overwrite and all((out / name / file).exists() for file in pictures):
                record = read_sealed(out / self.record.format(name=name)) or {}
            # A file may be removed during the run.
            try:
                # A record from elsewhere must not lead to other folders, nor lack a flag.
                is_own = record.get("folder", name) == name and {self.flag} <= {"", *record}
                is_current = record and is_own and describe(inputs(case)).items() <= record.items()
                if is_current and is_whole(case, record):
                    records[name] = record
                else:
                    tasks.append((name, case))
            except (FileNotFoundError, ValueError) as error:
                problems[name] = error_message(error)
        if records:
            tell(f"{counted(len(records), self.noun)} of {len(cases)} finished before")
        for name in problems:
            self._remove_case(out, name)
        # The run itself, with its functions, does not travel to workers.
        errors = self.errors

        def attempt(task: tuple[str, _Case]) -> tuple[str, dict[str, Any] | str]:
            name, case = task
            try:
                return name, work(case, out / name)
            except errors as error:
                return name, error_message(error)

        def text(result: tuple[str, dict[str, Any] | str]) -> str:
            return "" if isinstance(result[1], str) else self.line(result[1])

        jobs, cluster = options.jobs, options.cluster
        results = run_tasks(attempt, tasks, jobs=jobs, cluster=cluster, line=text, unit=self.noun)
        try:
            with resumable(f"{self.noun}s are", out, _RESUMED, pattern):
                for i, (name, outcome) in enumerate(results):
                    if isinstance(outcome, str):
                        # Workers do not know the options of the command, whose flags it names.
                        problems[name] = error_message(ValueError(outcome))
                        self._remove_case(out, name)
                        continue
                    records[name] = outcome
                    # The first case tells what the others will take: better now than at the last.
                    if i == 0:
                        files = [path for path in (out / name).rglob("*") if path.is_file()]
                        n_bytes = sum(path.stat().st_size for path in files)
                        check_room(out, (len(tasks) - 1) * n_bytes)
        finally:
            records = {name: records[name] for name in folders if name in records}
            failures = []
            for name, row in zip(folders, rows, strict=True):
                if name in problems:
                    # The name is told before the problem, which may begin with it too.
                    beginning = rf"\A(case )?{re.escape(row['name'])}: "
                    failures.append({**row, "problem": re.sub(beginning, "", problems[name])})
            # Where all cases fail, the error that ends the run tells the first of them.
            _say_failed(failures[len(failed) + (len(failures) == len(rows)) :])
            n_unfinished = len(folders) - len(records) - len(failures)
            self.write(out, records, failures, figure=options.figure, n_unfinished=n_unfinished)
        if failures and not records:
            raise ValueError("{name}: {problem}".format(**failures[len(failed)]))
        for line in say(records):
            typer.echo(line)
        if any(record.get("synthetic") for record in records.values()):
            typer.echo(f"synthetic {self.noun}s: no clinical result")
        if self.flag:
            self.say_flagged(records.values(), fail=options.fail_on_flag, n_failed=len(failures))

    def say_flagged(
        self, records: Collection[Mapping[str, Any]], *, fail: bool, n_failed: int = 0
    ) -> None:
        """Say how many cases are flagged; with `fail`, end with a code of its own for problems."""
        n_flagged = sum(bool(record[self.flag]) for record in records)
        # Failures are told as they occur, which may be pages above.
        failures = f"; failed: {n_failed} ({FAILED})" if n_failed else ""
        typer.echo(f"flagged: {n_flagged} of {len(records)}{failures}")
        if fail and n_flagged + n_failed:
            raise typer.Exit(FLAGGED)

    def _results(self) -> list[str]:
        return list(filter(None, (self.table, self.columns, self.lesions, FAILED, "index.html")))

    def write(
        self,
        out: Path,
        records: dict[str, dict[str, Any]],
        failures: Sequence[Mapping[str, Any]] = (),
        *,
        figure: bool,
        n_unfinished: int = 0,
    ) -> None:
        """Write the tables of all cases, and the page with their pictures."""
        import pandas as pd

        (out / FAILED).unlink(missing_ok=True)
        if failures:
            write_text(out / FAILED, table_text(pd.DataFrame(failures)))
        if not records:
            # Tables and page of an earlier run tell of files that are gone.
            for name in set(self._results()) - {FAILED} if failures else ():
                (out / name).unlink(missing_ok=True)
            return
        lesions = None
        if self.lesions:
            lesion_rows = []
            for record in records.values():
                scan = {key: record[key] for key in ("name", "patient")}
                lesion_rows += [scan | lesion for lesion in record["lesions"]]
            columns = ["name", "patient", *record["lesion_columns"]]
            # Records have null where numbers are missing, as those of a prior scan may be.
            lesions = pd.DataFrame(lesion_rows, columns=columns).fillna(float("nan"))
            make_text = csv_text if self.lesions.endswith(".csv") else table_text
            write_text(out / self.lesions, make_text(lesions, 7))
        rows = pd.DataFrame([self.row(name, record) for name, record in records.items()])
        write_text(out / self.table, table_text(rows, self.digits))
        if not (figure and can_draw()):
            return
        if self.page is not None:
            page = self.page(out, records, lesions)
        else:
            if rows["patient"].equals(rows["name"]):
                rows = rows.drop(columns="patient")
            cells = " | ".join(f"{key} {{{key}:w}}" for key in rows)
            table = pages.Table(rows.replace("", "none"), cells)
            title = f"{Path(self.record).stem} {self.noun}s".capitalize()
            page = RunPage(title, [table], [], self.note)
        failed = [pages.Table(failures, "failed {name} | problem {problem:w}")] if failures else []
        overview = [*page.overview, *failed]
        if n_unfinished:
            ended = f"The run ended early: {counted(n_unfinished, self.noun)} not finished"
            overview.insert(0, f"{ended}. The same command resumes it{_RESUMED}.")
        sections = [pages.Section(f"All {self.noun}s", *overview)]
        for table in sections[0].all(pages.Table):
            table.sortable = True
        sections += [pages.Section(name, *parts) for name, parts in page.pictures]
        sections.append(pages.Section("", pages.Note(page.note)))
        is_synthetic = (record["synthetic"] for record in records.values())
        lead = pages.notice_lead(is_synthetic, self.noun, page.notice or pages.NOTICE)
        html = pages.Page(page.title, sections, lead, script=page.script, style=page.style).html()
        write_text(out / "index.html", html)

    def write_case(
        self,
        folder: Path,
        record: Mapping[str, Any],
        lesions: pd.DataFrame,
        images: Mapping[str, Any],
        drawing: Figure | None,
        page: Callable[..., str],
    ) -> dict[str, Any]:
        """
        Write the images, lesions and pictures of a case, its record last; give the record.

        Arrays in the record are kept as their digests.

        The last two of `files` are the picture, and the page that is made from its bytes, which
        `page` takes as `picture`.
        """
        from dmrifit.io.digests import describe
        from dmrifit.io.nifti import save_image

        record = {
            **describe(record),
            "folder": folder.name,
            "lesion_columns": list(lesions.columns),
            "lesions": json.loads(lesions.to_json(orient="records", double_precision=15)),
            "notice": pages.NOTICE,
        }
        name = Path(self.record).name
        picture, view = self.files[-2:]
        with FileSet(folder, [*self.files, name], overwrite=True) as files:
            for file, image in images.items():
                save_image(image, files.path(file))
            save_table(lesions, files.path(self.lesions), 7)
            if drawing is not None:
                drawing.savefig(files.path(picture), dpi=110)
                text = page(picture=files.path(picture).read_bytes())
                files.path(view).write_text(text, encoding="utf-8")
            files.write_record(name, record)
        return record

    def shown(
        self, folder: Path, pictures: Mapping[str, str], *, width: int = 1000
    ) -> list[pages.Block]:
        """Show pictures of a case, each with its text, and link to its page, the last file."""
        parts: list[pages.Block] = []
        for name, alt in pictures.items():
            if (folder / name).exists():
                parts.append(pages.Picture((folder / name).read_bytes(), alt, width=width))
        view = (self.pictures or self.files)[-1]
        if (folder / view).exists():
            parts.append(pages.Link(f"{folder.name}/{view}", "Move through the planes"))
        return parts

    def keep(self, out: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
        """Write the record of a case, which marks it as finished."""
        text = json.dumps(sealed(record), indent=2) + "\n"
        write_text(out / self.record.format(name=name), text)
        return record

    def _remove_case(self, out: Path, name: str) -> None:
        """Remove the files of a case; without its record it is tried again in a resumed run."""
        (out / self.record.format(name=name)).unlink(missing_ok=True)
        for pattern in (*self.pictures, *self.files):
            for file in (out / name).glob(pattern):
                file.unlink()


def _say_failed(failures: Iterable[Mapping[str, Any]]) -> None:
    for failure in failures:
        typer.echo(f"failed: {failure['name']}: {failure['problem']}")


def begin_run(
    out: Path,
    settings: Mapping[str, Any],
    overwrite: bool,
    *,
    results: Iterable[str],
    records: str = "",
) -> None:
    """
    Store the settings of a run in its folder, and refuse to resume one with other settings.

    Where an earlier run with other settings may be replaced, its results and the records of its
    cases (a glob pattern) are removed first: otherwise a run that is interrupted would mix both.
    """
    from dmrifit.io.digests import changed_settings, check_command
    from dmrifit.io.nifti import chosen_form

    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder")
    settings = {**settings, **given(use=chosen_form())}
    path = out / "settings.json"
    text = json.dumps(settings, indent=2, default=str) + "\n"
    result_files = [out / name for name in results]
    finished = [*result_files, *(out.glob(records) if records else ())]
    check_command(path, settings, finished[len(result_files) :])
    if overwrite:
        if not (path.is_file() and path.read_bytes() == text.encode()):
            for file in finished:
                file.unlink(missing_ok=True)
    elif path.exists():
        stored = read_object(path)
        if stored is None:
            raise ValueError(
                f"{path} is damaged, so the settings of the run in {out} are unknown; "
                "choose another folder, or --overwrite"
            )
        changes = list(changed_settings(stored, json.loads(text)))
        # A run that was refused finished nothing that other options could mix with.
        if changes and any(file.exists() for file in finished if file.name != FAILED):
            raise ValueError(
                f"{out} holds a run with other options ({'; '.join(changes)}) or another version; "
                "repeat the earlier ones to go on with it, choose another folder, or --overwrite"
            )
    else:
        for file in result_files:
            if file.exists():
                raise FileExistsError(
                    f"{file} already exists and was not created by an earlier run; "
                    "choose another folder, or --overwrite"
                )
    write_text(path, text)


@dataclass(frozen=True)
class SimulationRun:
    """
    Where synthetic cases are written, which of them, and from which seed.

    Options:
    skip 0..: Cases to skip, such as those of an earlier folder, to get new ones to test on.
    seed 0..: Random seed: same seed, same cases.
    """

    out: Path
    skip: int = 0
    seed: int = 0
    overwrite: bool = False

    def write(
        self,
        settings: Mapping[str, Any],
        groups: Mapping[str, tuple[int, Mapping[str, str], Callable[[int, Path], None]]],
    ) -> None:
        """
        Write cases that an earlier run did not finish, and the tables of all.

        `groups` gives for each beginning of the names of cases: their number; by each table of all
        cases, the table in a case's folder whose rows go to it; and the function that writes a
        case, from its number and folder.
        """
        import pandas as pd

        rows: dict[str, list[dict[str, str]]] = {}
        cases = {}
        for group, (n, tables, write) in groups.items():
            rows |= {table: [] for table in tables}
            for i in range(self.skip, self.skip + n):
                cases[f"{group}-{i + 1:03d}"] = (i, tables, write)
        settings = {"command": "simulate", **settings, "skip": self.skip, "seed": self.seed}
        records = f"synthetic-*/{TABLE}"
        begin_run(self.out, settings, self.overwrite, results=rows, records=records)
        with resumable("cases are", self.out, _RESUMED, records):
            for name, (i, tables, write) in progress(cases.items(), len(cases)):
                folder = self.out / name
                finish_interrupted(folder)
                if self.overwrite or not (folder / TABLE).exists():
                    try:
                        write(i, folder)
                    except ValueError:
                        # Options that are refused leave nothing behind.
                        if not any(self.out.glob(records)):
                            (self.out / "settings.json").unlink()
                        raise
                for table, own_table in tables.items():
                    for row in read_texts(folder / own_table).to_dict("records"):
                        # In the table of all cases, paths are relative to the folder above.
                        paths = {
                            key: f"{name}/{x}" for key, x in row.items() if x.endswith(_CASE_FILES)
                        }
                        rows[table].append(row | paths)
        for table, lines in rows.items():
            if lines:
                write_text(self.out / table, table_text(pd.DataFrame(lines)))


def can_draw(what: str = "") -> bool:
    """Tell whether the packages for figures and pages are installed; say what is left out."""
    is_installed = all(map(find_spec, ("matplotlib", "jinja2")))
    if what and not is_installed:
        tell(f'no {what}: it needs more packages, pip install "dmrifit[report]"')
    return is_installed
