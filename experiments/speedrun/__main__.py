"""Runs an entry of the speedrun, and measures the time until it reaches a held-out loss. README.md has the rules.

    python -m experiments.speedrun baseline --track=tiny --data=SHARDS --runs=5
    python -m experiments.speedrun --page

The first command trains the entry with several seeds, each after a warm-up on made-up text, and writes the result to
records/. The second command writes README.md, with the rules and a table of the records. An entry is a config: a file
in this folder that defines get_config.
"""

import datetime
import json
import pathlib
import random
import statistics
import sys

import scipy.stats

import bert_fast
from bert_fast.commands import config_flag
from bert_fast.compare import records
from bert_fast.data import shards
from experiments import common
from experiments.speedrun.rules import HERE, TRACKS, page


def dummy(data: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Shards of made-up text with the vocabulary of `data`, for the warm-up."""
    if not (folder / "manifest.json").exists():
        words = [word for word in (data / "vocab.txt").read_text().split() if word.isalpha()]
        draw = random.Random(0)
        documents = (" ".join(draw.choices(words, k=500)) for _ in range(400))
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = folder.with_suffix(".txt")
        text.write_text("\n\n".join(documents))
        bert_fast.prepare(f"files:{text}", folder, vocab=data / "vocab.txt")
    return folder


def config_of(entry: str, track: str, seed: int, steps: int = 0):
    """An entry's config with the settings that the rules fix. It is evaluated once, at the end, on all held-out text.

    steps: the length of a warm-up run, which is evaluated on few examples; 0 for a run that counts.
    """
    config = config_flag.load(str(HERE / f"{entry}.py:track={track}"), {})
    rules = TRACKS[track]
    config.seed, config.sinks = seed, ""
    config.eval.update(every=0, examples=10**9, seq_len=rules.seq_len, seed=0, masked_share=0.15, whole_word=False)
    config.checkpoint.update(every=0, keep=1)
    if steps:
        config.steps = steps
        config.learning_rate.warmup_steps = 1
        config.eval.examples = 64
    return config


def run(entry: str, track: str, data: pathlib.Path, seeds: int, out: pathlib.Path) -> dict:
    """Trains an entry with every seed. Returns its record. Raises BadInput if there are changes without a commit."""
    commit = records.commit(":(glob)experiments/speedrun/*.py")
    warm, out = dummy(data, out / "dummy"), out / commit[:12]  # a run of other code is not continued
    found = []
    for seed in range(seeds):
        bert_fast.pretrain(config_of(entry, track, seed, steps=10), out / f"warm-up-{seed}", data=warm)
        summary = bert_fast.pretrain(config_of(entry, track, seed), out / f"seed={seed}", data=data)
        found.append({key: summary[key] for key in ("seconds", "tokens_padded", "flops", "devices")})
        found[-1] |= {"seed": seed, **{key: summary["valid"][key] for key in ("mlm_loss", "fingerprint")}}
        print(f"seed {seed}: {found[-1]['mlm_loss']:.4f} nats after {found[-1]['seconds']:.1f} s", flush=True)
    return {
        "entry": entry,
        "track": track,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "text": shards.read_manifest(data)["fingerprint"],
        "runs": found,
    }


def main():
    parser = common.parser(__doc__)
    parser.add_argument("entry", nargs="?", default="")
    parser.add_argument("--track", choices=TRACKS, default="tiny")
    parser.add_argument("--data", default="", help="the shards of the track")
    parser.add_argument("--runs", type=int, default=5, help="seeds [5]")
    parser.add_argument("--out", default="runs/speedrun", help="where runs are kept [runs/speedrun]")
    parser.add_argument("--page", action="store_true", help="write README.md")
    args = parser.parse_args()
    if args.page:
        (HERE / "README.md").write_text(page())
        return
    if not args.entry or not args.data:
        sys.exit("error: give an entry and --data, such as: baseline --data=runs/study/shards-books")
    out = pathlib.Path(args.out, args.track, args.entry)
    record = run(args.entry, args.track, pathlib.Path(args.data), args.runs, out)
    (HERE / "records").mkdir(exist_ok=True)
    path = HERE / "records" / f"{record['date']}-{args.track}-{args.entry}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    losses = [one["mlm_loss"] for one in record["runs"]]
    target = TRACKS[args.track].target
    if target is not None and len(losses) > 1:
        p = scipy.stats.ttest_1samp(losses, target, alternative="less").pvalue
        print(f"mean loss {statistics.fmean(losses):.4f}, target {target}: p = {p:.2g} in a one-sided t-test")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
