"""Compares runs honestly: equal budgets, equal seeds, and differences that are larger than the noise.

study.py     what is compared: arms, seeds, budgets, tasks
runs.py      trains what is missing, several runs at once
results.py   reads the finished runs; statistics over seeds
page.py      the results as Markdown
"""

import contextlib
import gzip
import pathlib

from bert_fast.data.files import atomic_json, atomic_write, hold, refuse_file


def compare(name: str, folder: str, data: str = "", processes: int = 0, dry_run: bool = False) -> int:
    """Runs a study, or what is missing of it, and writes results.md, results.json and rows.jsonl.gz to its folder.

    name: a shipped study or a file. Returns 1 if a run failed, else 0. Raises BadInput before the first run if the
    study cannot be run, and Interrupted after a signal.
    """
    from bert_fast.compare import page, results, runs, study
    from bert_fast.train.report import say

    made, out = study.load(name), pathlib.Path(folder)
    refuse_file(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    busy = f"another comparison is running in {out}: wait for it to finish, or choose another --out"
    with contextlib.closing(hold(out / ".lock", busy)):
        shards = runs.shards_of(made, out, data)
        study.refuse_incomparable(made, shards)
        at_once = processes or runs.processes_for(made, shards)
        costs = runs.make_costs(name, made, out, shards, one_core=at_once > 1)
        planned = runs.plan(made, out, shards, costs)
        say(runs.describe(planned, made, costs, at_once))
        if dry_run:
            return 0
        failed = runs.train(made, planned, out, shards, at_once)
        found = results.collect(made, out, shards, costs)
        atomic_json(out / "results.json", found)
        text = page.markdown(found, pathlib.Path(name).stem)
        atomic_write(out / "results.md", text.encode())
        with gzip.open(out / "rows.jsonl.gz", "wb") as packed:
            for one in planned:
                if (rows := out / one.run.folder / "metrics.jsonl").exists():
                    packed.write(rows.read_bytes())
        print(text)
        say(f"wrote {out}/results.md, results.json and rows.jsonl.gz")
    return 1 if failed else 0
