"""Reports of runs and studies: a self-contained HTML page, the same report in Markdown, and a PNG of the losses.

    read.py                 what a report shows: runs, a study, scores
    axes.py, scales.py      how far a run was at each row; units and ticks
    markup.py, blocks.py    escaped HTML; tables, figures and sections, as HTML and as Markdown
    chart.py, bars.py, words.py, switch.py    pictures, and the switch between them
    losses.py, plans.py, panels.py, speed.py, differences.py, scores.py, settings.py    the sections
    page.py                 puts them together
    png.py                  the losses as a PNG, with matplotlib

The command is `report`. The package is not called report, because `bert_fast.report` is the function of the API.
"""

import pathlib
from collections.abc import Sequence

from bert_fast import BadInput, storage
from bert_fast.data.files import atomic_write

KINDS = (".html", ".md", ".png")


def write(paths: Sequence[str | pathlib.Path], out: str | pathlib.Path = "") -> list[pathlib.Path]:
    """Writes the report of runs, or of a study, and returns the files written.

    paths: folders, or the URLs of runs in a bucket.
    out: a file that ends in .html, .md or .png, or a folder for report.html, report.md and, if matplotlib is installed,
    report.png. "": the folder of the study or of the only run, else the current folder.
    Raises BadInput if a path is not a run, study or fine-tuning folder, if it has no rows, or if `out` cannot be
    written.
    """
    from bert_fast.reporting import page, png, read
    from bert_fast.train import remote_checkpoints

    files = files_of(paths, str(out))
    made, curves = page.page_of(read.read([remote_checkpoints.described(path) for path in paths]))
    if not curves.runs:
        files = [file for file in files if file.suffix != ".png"]
    picture = next((file.name for file in files if file.suffix == ".png"), "")
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.suffix == ".html":
                atomic_write(file, made.html().encode())
            elif file.suffix == ".md":
                atomic_write(file, made.markdown(picture).encode())
            else:
                png.write(curves, file)
    except OSError as error:
        where = files[0].parent
        raise BadInput(f"{where} cannot be written ({error.strerror or error}): give another --out") from error
    return files


def files_of(paths: Sequence[str | pathlib.Path], out: str) -> list[pathlib.Path]:
    """The files to write. Raises BadInput for an unknown ending, or for a PNG without matplotlib."""
    from bert_fast.reporting import png

    path = pathlib.Path(out)
    if out and path.suffix and not path.is_dir():
        if path.suffix not in KINDS:
            raise BadInput(f"--out={out}: expected a folder, or a file that ends in {', '.join(KINDS)}")
        if path.suffix == ".png" and not png.available():
            raise BadInput(f'--out={out} needs matplotlib: pip install "bert_fast[report]", or choose .html or .md')
        return [path]
    if out and path.exists() and not path.is_dir():
        raise BadInput(f"--out={out} is a file without a known ending: expected a folder, or a file that ends in "
                       f"{', '.join(KINDS)}")  # fmt: skip
    alone = len(paths) == 1 and not storage.is_url(paths[0])
    folder = path if out else pathlib.Path(paths[0]) if alone else pathlib.Path()
    return [folder / f"report{kind}" for kind in KINDS if kind != ".png" or png.available()]
