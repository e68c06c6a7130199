# %% [markdown]
# # Pre-train a BERT on your language
#
# From text to a model with its own vocabulary: prepare, choose a budget that fits this runtime, train, look at the
# result, export. A run survives the end of the runtime: it continues from the last copy in your Drive or on the Hub.
#
# - Free runtimes end: a TPU v5e-1 (16 GB) after about 90 minutes, others when they are idle or have been used for a
#   long time.
# - **Runtime > Change runtime type** lists the types of runtime. Set `KEEP` below before you train for long.

# %%
NAME = "my_bert"  # @param {type: "string"}

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
# ## 1. Your text
#
# `TEXT` says where your text comes from:
#
# - `files:/content/text/*.txt`: files that you uploaded, or files on your Drive
#   (`files:/content/drive/MyDrive/text/*.txt`). A blank line ends a document. `.jsonl` and `.parquet` have a record
#   for each document. Each file may be gzipped.
# - `docs`: the English documentation on this machine, to try the notebook out.
#
# A few gigabytes are plenty for one session: BERT's own corpus has about 16 GB.

# %%
TEXT = "docs"  # @param {type: "string"}
VOCAB_SIZE = 8000  # @param {type: "integer"}

# %% [markdown]
# ## 2. What a vocabulary must keep
#
# A vocabulary may lowercase all letters and remove accents. That suits English. In other scripts it destroys words:
# German *für* becomes *fur*, Korean syllables fall apart into single letters, Japanese *が* loses its voicing mark.
# Write some sentences in your language, and compare what is left of them.

# %%
CASED = True  # @param {type: "boolean"}
STRIP_ACCENTS = False  # @param {type: "boolean"}

SAMPLES = [
    "Die Brücke über den Fluß wurde für Fußgänger gesperrt.",
    "서울의 봄은 짧고 아름답다.",
    "日本語の文章には、が・ぎ・ぐのような濁音がある。",
    "Việt Nam có nhiều ngôn ngữ khác nhau.",
]

from tokenizers import normalizers

for text in SAMPLES:
    for lowercase, strip in ((True, True), (not CASED, STRIP_ACCENTS)):
        normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip)
        print(f"{'BERT uncased' if strip and lowercase else 'your flags  '}  {normalizer.normalize_str(text)}")
    print()

# %% [markdown]
# ## 3. Prepare
#
# Text becomes shards, and a vocabulary is trained on it. This uses all cores. If the cell is stopped, run it
# again to continue.

# %%
import bert_fast

SHARDS = WORK / "shards"
manifest = bert_fast.prepare(DEBUG or TEXT, SHARDS, vocab_size=VOCAB_SIZE, cased=CASED, strip_accents=STRIP_ACCENTS)
tokens = manifest["splits"]["train"]["tokens"]
print(f"{tokens:,} training tokens, {manifest['vocab']['size']:,} word pieces")

# %% [markdown]
# If long words are split into many pieces, the vocabulary is too small, or was trained on another language. `[UNK]`
# stands for a word with a letter that the vocabulary does not have.

# %%
from IPython.display import HTML, display

from bert_fast.data.masking import read_vocab
from bert_fast.notebook import pictures

tokenizer = read_vocab(SHARDS).tokenizer
for text in SAMPLES:
    pieces = tokenizer.encode(text, add_special_tokens=False).tokens
    display(HTML(pictures.marked(pieces, [1.0 if piece.startswith("##") else 0.0 for piece in pieces])))

# %% [markdown]
# ## 4. A budget for this runtime
#
# - `SIZE`: a starting point is `mini` on a CPU, `small` on a GPU, and `medium` or `base` on a TPU.
# - `SESSION`: how long this runtime lasts, in minutes. Free TPUs: about 90.
# - `SESSIONS`: the number of sessions for the run. The schedules of the learning rate and the methods end with the
#   budget, so decide now: a later session continues the same run.
# - `METHODS`: see notebook `methods`. Empty: dense.

# %%
SIZE = "mini"  # @param ["tiny", "mini", "small", "medium", "base"]
SEQ = 128  # @param {type: "integer"}
BATCH_SIZE = 32  # @param {type: "integer"}
PEAK = 0.001  # @param {type: "number"}
METHODS = "token_drop"  # @param ["", "token_drop", "stacking", "stacking,token_drop"] {allow-input: true}
SESSION = 90  # @param {type: "integer"}
SESSIONS = 1  # @param {type: "integer"}

RESERVE = 15  # minutes of each session for compiling, evaluating and copying
minutes = max(5, runtime.minutes_left(SESSION) - RESERVE) + (SESSIONS - 1) * (SESSION - RESERVE)
CONFIG = f"bert:size={SIZE},seq={SEQ},objective=mlm,norm=pre"
CHANGES = {
    "methods": METHODS,
    "batch_size": BATCH_SIZE,
    "learning_rate.peak": PEAK,
    "learning_rate.warmup_steps": 300,
    "optimizer.bias_correction": True,
    "model.dtype": "bfloat16" if found.kind == "tpu" else "float32",
    "eval.every": 500,
    "eval.examples": 500,
    "checkpoint.every": 500,
}
if DEBUG:
    minutes, CONFIG = 1 / 20, f"{CONFIG},debug"
    CHANGES = {key: CHANGES[key] for key in ("methods", "model.dtype", "optimizer.bias_correction")}
    CHANGES |= {"eval.every": 200, "log_every": 100, "checkpoint.every": 200}

# %% [markdown]
# This cell measures the cost of a step once. The budget then becomes a number of steps, and the picture shows the
# resulting run.

# %%
from bert_fast.notebook import budget

RUN = WORK / "run"
changes = budget.for_minutes(CONFIG, RUN, minutes, SHARDS, CHANGES)
print(f"{minutes:.0f} minutes of training")
pictures.plan(CONFIG, {**changes, "data.dir": str(SHARDS)}, METHODS or "dense")

# %% [markdown]
# ## 5. Train
#
# **Stop** (the square) saves. Running the cell again continues the run, also in a later session. During training, your
# work is copied every five minutes to the place that you set as `KEEP`.

# %%
with keep.kept(WORK, PLACE):
    summary = bert_fast.pretrain(CONFIG, RUN, data=SHARDS, changes=changes)

# %%
pictures.curves({METHODS or "dense": RUN}, against=("tokens_padded", "seconds"))

# %% [markdown]
# The report shows more: what the method did, throughput, and where the time went.

# %%
bert_fast.report(RUN, out=RUN)
HTML(pictures.page(RUN / "report.html"))

# %% [markdown]
# ## 6. Look at it
#
# Any useful model must be better than one that only knows word frequencies. With `[MASK]` in place of a word, the model
# suggests what fits.

# %%
result = bert_fast.evaluate(RUN, unigram=True)
print(
    f"held-out loss {result['mlm_loss']:.2f} nats per masked word, {result['mlm_accuracy']:.0%} right; "
    f"word frequencies alone: {result['unigram_loss']:.2f}"
)

# %%
SENTENCE = "Return a [MASK] of the values."  # @param {type: "string"}

model = bert_fast.load(RUN)
for words in bert_fast.fill_mask(model, SENTENCE, top=5)[0]:
    print("   ".join(f"{word} {share:.0%}" for word, share in words))

# %% [markdown]
# ## 7. Take it with you
#
# The exported folder is loaded by `from_pretrained` of Hugging Face transformers. It has a model card that says how
# the model was made.

# %%
exported = WORK / "exported"
if not exported.exists():
    print(bert_fast.export(RUN, exported).class_name)
with keep.kept(WORK, PLACE):
    print(sorted(path.name for path in exported.iterdir()))

# %% [markdown]
# To put the model on the Hub, write `USER/NAME` in `REPO`, and the language of your text, such as `de`, in `LANGUAGE`.
# You need the secret `HF_TOKEN`, with a token that may write.

# %%
REPO = ""  # @param {type: "string"}
LICENSE = "apache-2.0"  # @param {type: "string"}
LANGUAGE = ""  # @param {type: "string"}

if REPO:
    about = [f"--license={LICENSE}", *([f"--language={LANGUAGE}"] if LANGUAGE else [])]
    print(runtime.command("push", f"--checkpoint={RUN}", f"--repo={REPO}", *about, on_cpu=True))

# %% [markdown]
# Notebook `finetune` continues here: give it this run, `my_bert/run`, as `CHECKPOINT`.

# %% tags=["finish"]
# @title Before you close this tab
# @markdown The training cells have copied everything. Drive's mount may still be uploading. This cell waits for it.
if KEEP == "drive":
    drive.flush_and_unmount()
