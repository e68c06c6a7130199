# %% [markdown]
# # What each method does
#
# Pre-training BERT is expensive because every layer, token, head and neuron works in every step. Each of the four
# methods leaves some of this out. Here you see what it leaves out and what that saves, and you can change the numbers.
#
# Nothing here needs an accelerator. One cell trains a small model. Everything else is arithmetic on a run's *plan*:
# which layers run in a step, which tokens they update, which layers learn.

# %%
NAME = "methods"  # @param {type: "string"}

# %% tags=["work"]
import os
import pathlib

DEBUG = os.environ.get("BERT_FAST_NOTEBOOK_DEBUG")  # set by the tests: a small corpus and small runs
WORK = pathlib.Path(NAME)  # shards and runs, on the runtime's own disk

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

# %% [markdown]
# ## All of them at a glance
#
# Each picture is a whole run: layers from bottom to top, steps from left to right. The chart below it shows what a
# step costs compared with a dense step. How much of the saved FLOPs becomes saved time depends on the machine.

# %%
SIZE = "base"  # @param ["mini", "small", "medium", "base", "large"]
SEQ = 128  # @param {type: "integer"}
STEPS = 100_000  # @param {type: "integer"}

from bert_fast.notebook import pictures

CONFIG = f"bert:size={SIZE},seq={SEQ},objective=mlm,norm=pre"
COMMON = {"steps": STEPS, "learning_rate.warmup_steps": STEPS // 100}
SYSTEMATIC = {"layer_drop.sampling": "systematic"}  # the number of layers that run varies by one at most

pictures.plans(
    {
        "dense": (CONFIG, COMMON),
        "layer dropping": (CONFIG, COMMON | SYSTEMATIC | {"methods": "layer_drop"}),
        "token dropping": (CONFIG, COMMON | {"methods": "token_drop"}),
        "EarlyBERT": (CONFIG, COMMON | {"methods": "early_bert"}),
        "stacking": (CONFIG, COMMON | {"methods": "stacking"}),
        "MSLT": (CONFIG, COMMON | {"methods": "stacking", "stacking.variant": "mslt"}),
    }
)

# %% [markdown]
# ## Progressive layer dropping
#
# Zhang and He, 2020 ([arXiv 2010.13369](https://arxiv.org/abs/2010.13369)). In each step, random layers are skipped.
# At first all layers run. Soon the topmost layer runs only with probability $\theta$. Lower layers run more often, and
# the lowest runs most often. If a layer runs, its output is scaled up, so that the expected sum does not change.
#
# $\theta(t) = (1 - \bar\theta)\, e^{-\gamma t} + \bar\theta$ falls almost to $\bar\theta$ within about $5/\gamma$
# steps. With `GAMMA = 0`, $\gamma$ is the paper's 100 divided by the number of steps.

# %%
THETA = 0.5  # @param {type: "slider", min: 0.1, max: 1.0, step: 0.05}
GAMMA = 0.0  # @param {type: "number"}
DEPTH_SCHEDULE = True  # @param {type: "boolean"}

import numpy as np
from matplotlib import pyplot

from bert_fast.methods import layer_drop

depth = pictures.settings_of(CONFIG, COMMON).model.depth
shown = min(STEPS, round(8 / GAMMA)) if GAMMA else round(0.08 * STEPS)
at_T = np.linspace(0, shown, 200)
theta_T = [layer_drop.theta_at(step, STEPS, THETA, GAMMA, "paper") for step in at_T]
keep_L, scale_L = layer_drop.keep_and_scale(depth, THETA, "paper", DEPTH_SCHEDULE)

figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3), layout="constrained")
left.plot(at_T, theta_T, color="#1f4e79")
left.set(xlabel="step", ylabel="θ: the topmost layer runs", ylim=(0, 1.05), xlim=(0, shown))
left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
right.barh(np.arange(1, depth + 1), keep_L, color="#74add1")
right.set(xlabel="probability that a layer runs, at the end", ylabel="layer", xlim=(0, 1.05))
for axis in (left, right):
    axis.grid(alpha=0.3)
pyplot.show()
print(f"At the end {keep_L.sum():.1f} of {depth} layers run on average, scaled by up to {scale_L.max():.2f}.")

# %%
DROPPING = {"methods": "layer_drop", "layer_drop.theta": THETA, "layer_drop.gamma": GAMMA}
DROPPING |= {"layer_drop.depth_schedule": DEPTH_SCHEDULE}
pictures.plans(
    {
        "independent draws (the paper)": (CONFIG, COMMON | DROPPING | {"layer_drop.sampling": "independent"}),
        "systematic draws": (CONFIG, COMMON | DROPPING | SYSTEMATIC),
    }
)

# %% [markdown]
# Systematic draws need fewer compiled programs: the number of layers that run hardly varies. Each layer runs as often
# as with independent draws.

# %% [markdown]
# ## Token dropping
#
# Hou et al., 2022 ([arXiv 2203.13240](https://arxiv.org/abs/2203.13240)). Unimportant tokens skip the middle layers
# and return in the last one. A token's importance is the running loss of its word piece: pieces that the model predicts
# well need less work.
#
# - `KEEP_TOKENS`: the share of the tokens that the middle layers update.
# - `BOUNDARY`: the first layer that drops tokens, counted from 0. -1 stands for half the number of layers, minus 1, as
#   in the released code.

# %%
KEEP_TOKENS = 0.5  # @param {type: "slider", min: 0.25, max: 1.0, step: 0.05}
BOUNDARY = -1  # @param {type: "integer"}

pictures.plan(
    CONFIG, COMMON | {"methods": "token_drop", "token_drop.keep": KEEP_TOKENS, "token_drop.boundary": BOUNDARY}
)

# %% [markdown]
# ## EarlyBERT
#
# Chen et al., 2021 ([arXiv 2101.00063](https://arxiv.org/abs/2101.00063)). A short search gives every head and every
# neuron a coefficient, with a penalty that pulls it towards 0. Those with the lowest coefficients are pruned. What
# remains is the *ticket*: the smaller model returns to its first weights, and the training starts.
#
# - `HEAD_RATIO`, `NEURON_RATIO`: the shares that are pruned.
# - `SEARCH`: the search's share of the steps.

# %%
HEAD_RATIO = 0.333333  # @param {type: "number"}
NEURON_RATIO = 0.4  # @param {type: "number"}
SEARCH = 0.05  # @param {type: "slider", min: 0.02, max: 0.5, step: 0.01}

PRUNING = {"early_bert.head_ratio": HEAD_RATIO, "early_bert.neuron_ratio": NEURON_RATIO, "early_bert.search": SEARCH}
pictures.plan(CONFIG, COMMON | PRUNING | {"methods": "early_bert"})

# %% [markdown]
# ### A real search, and real scores of tokens
#
# A small model now searches for its ticket, and learns which tokens matter at the same time: both methods in one run.
# It takes about two minutes on two cores.

# %%
SEARCH_STEPS = 10 if DEBUG else 200

import bert_fast

bert_fast.prepare(DEBUG or "docs", WORK / "shards", vocab_size=8_000)
summary = bert_fast.pretrain(
    "quickstart:size=mini,seq=64" + (",debug" if DEBUG else ""),
    WORK / "search",
    data=WORK / "shards",
    changes={
        "methods": "early_bert,token_drop",
        "early_bert.search": SEARCH_STEPS,
        "steps": SEARCH_STEPS,
        "learning_rate.warmup_steps": SEARCH_STEPS // 4,
        "log_every": SEARCH_STEPS // 10,
        "eval.every": 0,
        "eval.examples": 64,
        "checkpoint.every": SEARCH_STEPS,  # one checkpoint at the end of the search
    },
)

# %% [markdown]
# Heads and neurons in the order of their coefficients, one line per layer. Change the ratios above, then run that cell
# and this one again: the search stays the same, but the ticket changes.

# %%
from bert_fast.methods import early_bert
from bert_fast.train import checkpoint

searched = checkpoint.restore_params(WORK / "search/checkpoints" / str(SEARCH_STEPS))["layers"]
heads_LH, neurons_LF = searched["head_scale"], searched["neuron_scale"]
layers = len(heads_LH)
kept_LH = early_bert.keep(heads_LH, early_bert.make_units([heads_LH.shape[1]] * layers, HEAD_RATIO, together=False))
kept_LF = early_bert.keep(
    neurons_LF, early_bert.make_units([neurons_LF.shape[1]] * layers, NEURON_RATIO, together=True)
)

figure, axes = pyplot.subplots(1, 2, figsize=(11, 3), layout="constrained")
for axis, name, coefficients, kept in zip(
    axes, ("head", "neuron"), (heads_LH, neurons_LF), (kept_LH, kept_LF), strict=True
):
    for layer in range(layers):
        order = np.argsort(-coefficients[layer])
        for which, colour in ((kept[layer], "#1f4e79"), (~kept[layer], "#d1661a")):
            place = np.flatnonzero(which[order])
            axis.vlines(
                place, layer + 0.6, layer + 1.4, color=colour, linewidth=420 / len(order) / 2 if name == "head" else 0.5
            )
        axis.text(len(order) * 1.01, layer + 1, f"{kept[layer].sum()} of {len(order)}", va="center", fontsize=9)
    axis.set(xlabel=f"{name}s, highest coefficient first", ylabel="layer", yticks=range(1, layers + 1))
    axis.set_xlim(-0.02 * len(order) - 0.5, len(order) * 1.22)
figure.suptitle("the ticket: kept in blue, pruned in orange", fontsize=11)
pyplot.show()

# %% [markdown]
# During the search, masks record which units would be kept. The *distance* of two masks is the share of units in which
# they differ. When it stays small, the ticket has stabilised, and the search may end
# (`--config.early_bert.stop=early_bird`).

# %%
from bert_fast.train.log import read_rows

rows = [row for row in read_rows(WORK / "search/metrics.jsonl") if "early_bert/neuron_distance" in row]
rows = [row for row in rows if row["stage"] == "search"]
figure, axis = pyplot.subplots(figsize=(6, 2.8), layout="constrained")
for name, colour, dash in (("neuron", "#1f4e79", "-"), ("head", "#d1661a", "--")):
    distances = [row[f"early_bert/{name}_distance"] for row in rows]
    axis.plot([row["step"] for row in rows], distances, label=f"{name}s", color=colour, linestyle=dash, marker=".")
axis.set(xlabel="step of the search", ylabel="distance to the mask before", ylim=(0, None))
axis.grid(alpha=0.3)
axis.legend(frameon=False)
pyplot.show()

# %% [markdown]
# ### Which tokens the middle layers would drop
#
# The darker a word piece, the higher its running loss. The middle layers drop the pieces that are struck out. `[MASK]`,
# `[CLS]` and `[SEP]` are always kept. After so few steps the scores mostly tell frequent words from rare ones.

# %%
SENTENCE = "Return a copy of the array with the [MASK] of the axes changed, or raise an error if the shape does not match."  # @param {type: "string"}

from IPython.display import HTML

from bert_fast import encoder
from bert_fast.methods.token_drop import PINNED
from bert_fast.notebook.state import method_state

searching = WORK / "search/checkpoints" / str(SEARCH_STEPS)
score_V = method_state(searching)["1"]  # the second method of the run
vocab = encoder.load(searching).vocab
pieces = vocab.tokenizer.encode(f"[CLS] {SENTENCE} [SEP]", add_special_tokens=False)
scores = score_V[np.array(pieces.ids)]
ranks = np.argsort(np.argsort(-scores, kind="stable"))
kept = ranks < round(KEEP_TOKENS * len(scores))
learned = np.where(scores >= PINNED, scores[scores < PINNED].max(), scores)
HTML(pictures.marked(pieces.tokens, learned, kept))

# %% [markdown]
# ## Stacking and MSLT
#
# Progressive stacking (Gong et al., 2019) trains a few layers, stacks copies of them on top, and continues. MSLT
# (Yang et al., 2020, [arXiv 2011.13635](https://arxiv.org/abs/2011.13635)) copies the topmost layers and trains only
# the copies, until a last stage trains everything. The layers below are frozen, so they need no backward pass.
#
# - `DEPTHS`: number of layers in each stage. Empty: a quarter, a half and all of the layers; MSLT adds three quarters.
# - `SHARES`: each stage's share of the steps, in the picture of stacking only. Empty: the paper's shares.

# %%
DEPTHS = ""  # @param {type: "string"}
SHARES = ""  # @param {type: "string"}

GROWING = {"methods": "stacking", "stacking.depths": DEPTHS}
pictures.plans(
    {
        "stacking": (CONFIG, COMMON | GROWING | {"stacking.shares": SHARES}),
        "MSLT": (CONFIG, COMMON | GROWING | {"stacking.variant": "mslt"}),
    }
)

# %% [markdown]
# ## Together
#
# Methods are applied in the order in which they are named: first the one that grows the model, then the one that
# prunes it, then those that drop tokens or layers. An order that cannot work raises an error that gives the reason.

# %%
METHODS = "stacking,early_bert,token_drop,layer_drop"  # @param {type: "string"}

pictures.plan(CONFIG, COMMON | SYSTEMATIC | {"methods": METHODS}, "together")

# %%
try:
    pictures.course(pictures.settings_of(CONFIG, COMMON | {"methods": "token_drop,stacking"}))
except bert_fast.BadInput as reason:
    print(reason)

# %% [markdown]
# What these savings cost in quality is another question. Notebook `quickstart` compares losses at equal time, and
# `bert-fast compare` does so with several seeds and budgets.
