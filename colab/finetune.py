# %% [markdown]
# # Fine-tune: from a model to a score, and back
#
# You give a model, one of yours or one from the Hub, and a file with texts and labels. You get a score with its
# deviation over seeds, and a folder that Hugging Face transformers loads.

# %%
NAME = "finetune"  # @param {type: "string"}

# %% tags=["work"]
import os
import pathlib

DEBUG = os.environ.get("BERT_FAST_NOTEBOOK_DEBUG")  # set by the tests: a small corpus and small runs
WORK = pathlib.Path(NAME)  # shards and runs, on the runtime's own disk

# %% tags=["keep"]
# @title Where to keep your work { display-mode: "form" }
# @markdown `drive`: a folder in your Google Drive. `hub:USER/NAME`: a private repository on the Hugging Face Hub
# @markdown (click the key on the left to add a secret `HF_TOKEN` with write access). Empty: nowhere, for a first look.
KEEP = ""  # @param ["", "drive", "hub:USER/NAME"] {allow-input: true}

PLACE = KEEP
if KEEP == "drive":
    from google.colab import drive

    drive.mount("/content/drive")
    PLACE = f"/content/drive/MyDrive/bert_fast/{NAME}"

# %% tags=["install"]
# @title Install bert_fast { display-mode: "form" }
# @markdown A wheel, a `.tar.gz` or a folder that you uploaded, or the address of a Git repository (`git+https://...`).
SOURCE = ""  # @param {type: "string"}
# @markdown Only if the cell says that this runtime's JAX is too old:
UPGRADE_JAX = False  # @param {type: "boolean"}

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys

OLDEST_JAX = "0.10.2"
# Packages that fit this runtime's TPU or GPU. Their versions must not change.
OF_JAX = re.compile(r"jax|jaxlib|libtpu|jax[-_]cuda\d+[-_]\w+|nvidia[-_].*")


def number(version):
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def installed():
    return {found.name.lower(): found.version for found in importlib.metadata.distributions()}


def requirement_of_jax(packages):
    """pip's requirement of a newer JAX, for the same accelerator as the installed JAX."""
    plugin = next((re.search(r"cuda\d+", name)[0] for name in packages if re.match(r"jax[-_]cuda", name)), "")
    extra = plugin or ("tpu" if "libtpu" in packages else "")
    return f"jax[{extra}]>={OLDEST_JAX}" if extra else f"jax>={OLDEST_JAX}"


def install(source, upgrade_jax=False, run=subprocess.run):
    """Installs bert_fast next to this runtime's JAX. Returns what happened, and what to do next."""
    if importlib.util.find_spec("bert_fast"):
        return "bert_fast is installed."
    before, python = installed(), sys.version_info[:2]
    if not (3, 11) <= python <= (3, 13):
        raise RuntimeError(
            f"This runtime has Python {python[0]}.{python[1]}, and bert_fast needs 3.11 to 3.13: choose another "
            "version in Runtime > Change runtime type."
        )
    if not source:
        raise RuntimeError(
            "SOURCE is empty: upload a wheel of bert_fast (the folder on the left, then the upload button) and write "
            "its path, such as /content/bert_fast-0.1.0-py3-none-any.whl, or write git+https://... of a repository."
        )
    if source.endswith(".zip"):
        raise RuntimeError(
            f"pip would unpack {source} without the link from bert_fast/configs to configs/: give a wheel or a .tar.gz."
        )
    if number(before.get("jax", OLDEST_JAX)) < number(OLDEST_JAX) and not upgrade_jax:
        raise RuntimeError(
            f"This runtime has JAX {before['jax']}, and bert_fast needs {OLDEST_JAX}: choose the newest version in "
            "Runtime > Change runtime type, or tick UPGRADE_JAX and run this cell again."
        )
    kept = {} if upgrade_jax else {name: at for name, at in before.items() if OF_JAX.fullmatch(name)}
    constraints = pathlib.Path("constraints-of-jax.txt")
    constraints.write_text("".join(f"{name}=={at}\n" for name, at in kept.items()))
    wanted = [source, *([requirement_of_jax(before)] if upgrade_jax else [])]
    done = run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *wanted],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"pip could not install {source}:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    importlib.invalidate_caches()
    after = installed()
    replaced = sorted(n for n in before if n in after and n.replace("-", "_") in sys.modules and before[n] != after[n])
    if replaced:
        return (
            f"{', '.join(replaced)} was replaced while in use: Runtime > Restart session, then run from the first cell."
        )
    return f"bert_fast is installed, next to JAX {after.get('jax')}."


print(install(SOURCE, UPGRADE_JAX))

# %% tags=["check"]
# @title Check the runtime
from bert_fast.notebook import runtime

found = runtime.check()

# %% tags=["resume"]
# @title Continue where an earlier session stopped
from bert_fast.notebook import keep

keep.resume(WORK, PLACE)
# %% [markdown]
# ## 1. The model
#
# - `CHECKPOINT`: your own run, such as `my_bert/run` from notebook `pretrain_your_language`, or its copy on
#   Drive: `/content/drive/MyDrive/bert_fast/my_bert/run`.
# - `HF`: the name of a BERT on the Hub, such as `google-bert/bert-base-uncased`, or a folder in Hugging Face's
#   format.
# - Both empty: a small BERT is trained here first, on the documentation on this machine.

# %%
CHECKPOINT = ""  # @param {type: "string"}
HF = ""  # @param {type: "string"}

import bert_fast

if not CHECKPOINT and not HF:
    bert_fast.prepare(DEBUG or "docs", WORK / "shards", vocab_size=8_000)
    CHECKPOINT = str(WORK / "run")
    small = {"steps": 20 if DEBUG else 2_000, "eval.every": 0, "eval.examples": 100}
    with keep.kept(WORK, PLACE):
        bert_fast.pretrain("quickstart" + (":debug" if DEBUG else ""), CHECKPOINT, data=WORK / "shards", changes=small)

# %% [markdown]
# ## 2. The labelled texts
#
# A CSV, TSV or JSON Lines file with a column of texts and a column of labels. `PAIR` names the column of a second
# text, if there is one. `KIND` is `classes`, `score` (a number) or `tags` (a CoNLL file).
#
# If `FILE` is empty, an example file is made: the first paragraphs of docstrings, each labelled with its package. This
# is a real task, and everything that it needs is on this machine.

# %%
FILE = ""  # @param {type: "string"}
KIND = "classes"  # @param ["classes", "score", "tags"]
TEXT_COLUMN = "text"  # @param {type: "string"}
PAIR = ""  # @param {type: "string"}
LABEL_COLUMN = "label"  # @param {type: "string"}

import csv
import importlib
import inspect
import itertools
import pathlib
import random


def docstrings(module):
    """The first paragraphs of the docstrings of a module's functions and classes, in order."""
    members = (getattr(module, name) for name in sorted(dir(module)) if not name.startswith("_"))
    texts = (inspect.getdoc(each) for each in members if callable(each))
    return sorted({" ".join(text.split("\n\n")[0].split()) for text in texts if text})


PACKAGES = {
    "numpy": "numpy numpy.linalg numpy.fft numpy.ma",
    "scipy": "scipy.linalg scipy.optimize scipy.signal scipy.stats",
    "standard library": "argparse asyncio logging os shutil socket subprocess tarfile threading urllib.request",
}
if not FILE:
    packages = {name: map(importlib.import_module, modules.split()) for name, modules in PACKAGES.items()}
    rows = [(text, name) for name, modules in packages.items() for each in modules for text in docstrings(each)]
    rows = [row for row in dict(rows).items() if 3 < len(row[0].split()) < 60]
    random.Random(0).shuffle(rows)
    FILE = str(WORK / "packages.csv")
    with open(FILE, "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *(rows[:64] if DEBUG else rows)])

with open(FILE) as file:
    print("".join(itertools.islice(file, 6)))

# %% [markdown]
# ## 3. Fine-tune
#
# Each learning rate is run with each seed: a score without its deviation over seeds says little. A tenth of the file
# is held out for the score. Finished runs are not repeated, and a run that was stopped continues.

# %%
LEARNING_RATES = "1e-4,3e-4"  # @param {type: "string"}
SEEDS = "0,1,2"  # @param {type: "string"}
EPOCHS = 3.0  # @param {type: "number"}

SCORES = WORK / "scores"
columns = "" if KIND == "tags" else f",text={TEXT_COLUMN},label={LABEL_COLUMN}" + (f",pair={PAIR}" if PAIR else "")
changes = {
    "own.train": str(pathlib.Path(FILE).resolve()),
    "learning_rates": LEARNING_RATES,
    "seeds": SEEDS,
    "epochs": EPOCHS,
}
if DEBUG:
    columns, changes = f"{columns},debug", {"own.train": changes["own.train"]}
with keep.kept(WORK, PLACE):
    results = bert_fast.finetune(f"own:kind={KIND}{columns}", SCORES, checkpoint=CHECKPOINT, hf=HF, changes=changes)

# %% [markdown]
# The last column is the score of a model that always predicts the most frequent label, or the mean if the labels are
# scores. Deviations are over seeds.

# %%
from IPython.display import Markdown, display

((task, about),) = results["tasks"].items()
baseline = about["baseline"]
lines = [f"| metric | mean | deviation | {baseline['prediction']} |", "|---|---|---|---|"]
for metric, numbers in about["last"].items():
    deviation = "one seed" if numbers["deviation"] is None else f"{numbers['deviation']:.1f}"
    lines.append(f"| {metric} | {numbers['mean']:.1f} | {deviation} | {baseline[metric]:.1f} |")
display(Markdown(f"Learning rate {about['chosen']}:\n\n" + "\n".join(lines)))

# %% [markdown]
# ## 4. Predict
#
# This uses the first seed's model at the best learning rate.

# %%
NEW = "Return the eigenvalues of a real symmetric matrix, sorted in ascending order."  # @param {type: "string"}
NEW_PAIR = ""  # @param {type: "string"}

from bert_fast.tasks.predict import predict_file

MODEL = sorted((SCORES / task).glob(f"lr={float(about['chosen']):g},seed=*"))[0]
if KIND == "tags":
    new = WORK / "new.conll"
    new.write_text("\n".join(NEW.split()) + "\n")
else:
    new = WORK / "new.csv"
    with new.open("w", newline="") as file:
        named = {TEXT_COLUMN: NEW, **({PAIR: NEW_PAIR} if PAIR else {})}
        csv.writer(file).writerows([list(named), list(named.values())])
print(predict_file(str(MODEL), str(new), "", (), 32))

# %% [markdown]
# ## 5. Export
#
# Hugging Face transformers loads the exported folder. It holds the tokenizer, the names of the labels, and a model card
# that states the task and the score.

# %%
exported = WORK / "exported"
if not exported.exists():
    print(bert_fast.export(MODEL, exported).class_name)

try:
    import transformers
except ImportError:
    print("%pip install transformers torch, then run this cell again")
else:
    transformers.utils.logging.disable_progress_bar()
    kind = "token-classification" if KIND == "tags" else "text-classification"
    pair = {"text": NEW, "text_pair": NEW_PAIR} if PAIR else NEW
    print(transformers.pipeline(kind, str(exported), top_k=None)(pair))

# %% [markdown]
# To put the model on the Hub, write `USER/NAME` in `REPO`. You need the secret `HF_TOKEN`, with a token that may write.

# %%
REPO = ""  # @param {type: "string"}
LICENSE = "apache-2.0"  # @param {type: "string"}

if REPO:
    print(runtime.command("push", f"--checkpoint={MODEL}", f"--repo={REPO}", f"--license={LICENSE}", on_cpu=True))

# %% tags=["finish"]
# @title Before you close this tab
# @markdown The training cells have copied everything. Drive's mount may still be uploading. This cell waits for it.
if KEEP == "drive":
    drive.flush_and_unmount()
