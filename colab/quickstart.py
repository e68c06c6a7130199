# %% [markdown]
# # Quickstart: the same training time, with and without acceleration
#
# Two small BERTs are trained for the same *reference time*: one dense, one with an accelerating method. You see both
# learning curves, and both models fill in masks. The text is the documentation of Python and of the packages on this
# machine, so nothing is downloaded.
#
# - On a CPU (two cores): about eight minutes.
# - **Runtime > Change runtime type** offers a TPU (v5e-1) or a GPU. There, choose a larger size below.
#
# Run the cells from top to bottom. Fields on the right are yours to change.

# %%
NAME = "quickstart"  # @param {type: "string"}

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
# ## 1. What is compared
#
# A *study* is a short Python file. It names the arms, what they have in common, and how long they train. Reference
# time is what the steps cost on this machine, measured once before training. So the comparison is fair even if the
# machine is busy with something else.
#
# - `METHODS`: what accelerates the second model. Notebook `methods` shows what each of them does.
# - `SIZE`: `tiny` suits two CPU cores. On a TPU or GPU, a tiny model waits for its next batch, so faster steps save
#   no time: choose `small`.
# - `PEAK`: the peak of the learning rate. The recipe was tuned for `tiny` (0.006); larger models need less.

# %%
METHODS = "stacking"  # @param ["stacking", "token_drop", "stacking,token_drop", "layer_drop", "early_bert"] {allow-input: true}
SIZE = "tiny"  # @param ["tiny", "mini", "small", "medium"]
PEAK = 0.006  # @param {type: "number"}
SECONDS = 180  # @param {type: "integer"}

if DEBUG:
    SIZE, SECONDS = "tiny,debug", 3

OPTIONS = {
    "stacking.learning_rate": "run",  # one schedule for all stages: a short run's warm-up outlasts its first stage
    "token_drop.shortest": 16,  # rows of 8 tokens have none to spare
    "layer_drop.sampling": "systematic",  # fewer programs to compile
}
OPTIONS = {name: value for name, value in OPTIONS.items() if name.partition(".")[0] in METHODS.split(",")}

study = WORK / "study.py"
study.parent.mkdir(parents=True, exist_ok=True)
study.write_text(f'''
from bert_fast.compare.study import Study

def get_study():
    return Study(
        config="quickstart:size={SIZE}",
        changes={{"learning_rate.peak": {PEAK}, "eval.every": 100, "eval.examples": 300, "checkpoint.every": 200}},
        arms={{
            "dense": {{}},
            "accelerated": {{"methods": "{METHODS}", **{OPTIONS}}},
        }},
        source="{DEBUG or "docs"}",
        seeds=(0,),
        budgets=("seconds:{SECONDS}",),
    )
''')
print(study.read_text())

# %% [markdown]
# ## 2. Train
#
# This prepares the corpus, measures what steps cost, and trains both models. **Stop** (the square) saves; running the
# cell again continues. If the runtime ends, open the notebook again and run it from the top: it continues from what
# was kept.

# %%
from bert_fast.compare import compare

with keep.kept(WORK, PLACE):
    results = compare(str(study), str(WORK))

# %% [markdown]
# ## 3. Compare
#
# The held-out loss is the loss on text that neither model has seen, in nats per masked word: lower is better. One seed
# is too few to say which method is better. For that, train with more seeds and budgets: `seeds=(0, 1, 2)` in the
# study.

# %%
from IPython.display import Markdown, display

((budget, found),) = results["budgets"].items()
rows = [
    f"| {arm} | {about['mlm_loss']:.3f} | {about['mlm_accuracy']:.1%} | {about['tokens']:,.0f} | {about['flops']:.2e} |"
    for arm, about in found["arms"].items()
]
head = "| model | held-out loss | right | tokens | FLOPs |\n|---|---|---|---|---|\n"
display(Markdown(f"After {budget.partition(':')[2]} reference seconds each:\n\n{head}" + "\n".join(rows)))

# %%
from bert_fast.compare.study import Run
from bert_fast.notebook import pictures

runs = {arm: WORK / Run(arm, budget, 0).folder for arm in found["arms"]}
pictures.curves(runs, against=("tokens_padded", "flops"))

# %% [markdown]
# The report has more: the plan of each run, what the methods did, throughput, and the settings in which the runs differ.

# %%
from IPython.display import HTML

import bert_fast

written = bert_fast.report(WORK, out=WORK)
print(*written, sep="\n")
HTML(pictures.page(WORK / "report.html"))

# %% [markdown]
# ## 4. Fill in masks
#
# The three most probable word pieces, according to each model.

# %%
SENTENCES = [
    "Return True if the two [MASK] are equal.",
    "The function returns a [MASK] of the input array.",
    "If the file does not exist, an exception is [MASK].",
]
YOURS = "The default [MASK] is None."  # @param {type: "string"}

for arm, run in runs.items():
    print(f"{arm}:")
    print(runtime.command("fill-mask", f"--checkpoint={run}", "--top=3", *SENTENCES, YOURS))

# %% [markdown]
# ## Next
#
# - `methods`: what each method does, in pictures.
# - `pretrain_your_language`: the same with your own text.
# - `finetune`: from a trained model to a score.

# %% tags=["finish"]
# @title Before you close this tab
# @markdown The training cells have copied everything. Drive's mount may still be uploading. This cell waits for it.
if KEEP == "drive":
    drive.flush_and_unmount()
