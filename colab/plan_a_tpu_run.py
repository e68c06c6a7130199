# %% [markdown]
# # Plan a TPU run before you pay for it
#
# How many FLOPs, hours and dollars does a run take? Does it fit into memory? How much do the methods save? Nothing here
# needs an accelerator: FLOPs are counted, and a TPU's own compiler, which runs on any Linux machine, compiles the
# run's programs.
#
# These are estimates, and the outputs say what they leave out. Only a TPU shows what a TPU really does.

# %%
NAME = "plan"  # @param {type: "string"}

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
# ## 1. The run
#
# The default is close to BERT-base as published, in one phase: 256 million examples of 128 tokens.

# %%
SIZE = "base"  # @param ["mini", "small", "medium", "base", "large"]
SEQ = 128  # @param {type: "integer"}
BATCH_SIZE = 1024  # @param {type: "integer"}
STEPS = 250_000  # @param {type: "integer"}
METHODS = "token_drop"  # @param ["token_drop", "stacking", "stacking,token_drop", "layer_drop", "early_bert"] {allow-input: true}
TOPOLOGY = "v5e:2x2"  # @param ["v5e:1x1", "v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v6e:1x1", "v6e:2x2"] {allow-input: true}

CONFIG = f"bert:size={SIZE},seq={SEQ},objective=mlm,norm=pre"
CHANGES = {
    "steps": STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rate.warmup_steps": STEPS // 100,
    "model.dtype": "bfloat16",
}
if DEBUG:
    CONFIG, TOPOLOGY = f"{CONFIG},debug", "v5e:1x1"
    CHANGES = {"model.dtype": "bfloat16"}

# %% [markdown]
# ## 2. FLOPs, stage by stage
#
# The next cell prints a `bert-fast` command, as you would type it in a terminal, and runs it.

# %%
from bert_fast.notebook import runtime

ACCELERATED = [f"--config={CONFIG}", *(f"--config.{key}={value}" for key, value in CHANGES.items())]
ACCELERATED += [f"--config.methods={METHODS}"]
DENSE = [f"--compare={CONFIG}", *(f"--compare.{key}={value}" for key, value in CHANGES.items())]
print("bert-fast plan", *ACCELERATED, *DENSE, sep=" \\\n    ")
print()
print(runtime.command("plan", *ACCELERATED, *DENSE))

# %%
from bert_fast.notebook import pictures

pictures.plans({"dense": (CONFIG, CHANGES), METHODS: (CONFIG, CHANGES | {"methods": METHODS})})

# %% [markdown]
# ## 3. Hours and dollars by chip
#
# The figures assume that the run reaches the share `UTILISATION` of the chips' peak FLOP/s. Prices are on-demand list
# prices in the United States. Their dates are in `bert_fast/cost/accelerators.py`. Look up the prices that you pay:
# spot chips cost less.

# %%
UTILISATION = 0.4  # @param {type: "slider", min: 0.1, max: 0.8, step: 0.05}
CHIPS = 4  # @param {type: "integer"}

from IPython.display import Markdown, display

from bert_fast.cost.accelerators import TPUS

dense = pictures.flops_of(pictures.settings_of(CONFIG, CHANGES))
accelerated = pictures.flops_of(pictures.settings_of(CONFIG, CHANGES | {"methods": METHODS}))
lines = [f"| chips | dense, hours | {METHODS}, hours | dense, $ | {METHODS}, $ |", "|---|---|---|---|---|"]
for name, chip in TPUS.items():
    hours = [flops / (CHIPS * chip.peak * UTILISATION) / 3600 for flops in (dense, accelerated)]
    dollars = [f"{CHIPS * chip.dollars * each:,.0f}" if chip.dollars else "no list price" for each in hours]
    lines.append(f"| {CHIPS} x {name} | {hours[0]:,.1f} | {hours[1]:,.1f} | {dollars[0]} | {dollars[1]} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## 4. Ask the TPU's compiler
#
# The compiler tells whether the run fits into memory, how much memory it takes, and how many cycles its programs need
# at least. The compiler is part of `libtpu`, which must match JAX. TPU runtimes have it. Elsewhere, this cell says how
# to install it. At BERT-base size, a program takes one to three minutes to compile on two cores. Results are kept.

# %%
import importlib.metadata

from bert_fast import versions

needed = versions.libtpu_of_jax()
try:
    has_compiler = importlib.metadata.version("libtpu").startswith(needed)
except importlib.metadata.PackageNotFoundError:
    has_compiler = False
if has_compiler:
    print(runtime.command("plan", *ACCELERATED, f"--topology={TOPOLOGY}"))
else:
    print(f"No TPU compiler here. Run this in a new cell, then this cell again:\n\n%pip install libtpu=={needed}.*")

# %% [markdown]
# ## 5. The settings that cost least
#
# If you tick `SEARCH`, this cell searches for the settings that cost least on one chip with 16 GB, such as Colab's
# v5e-1. The search compiles many programs.

# %%
SEARCH = False  # @param {type: "boolean"}

if SEARCH and has_compiler:
    print(runtime.command("plan", *ACCELERATED, "--topology=v5e:1x1", "--search"))

# %% [markdown]
# ## 6. Run it
#
# The documentation's page *Cloud TPU* goes from an empty project to a finished run. On the TPU VM, the run is the same
# command without the planner's flags:

# %%
print("bert-fast pretrain", *ACCELERATED, "--workdir=runs/base --config.data.dir=shards", sep=" \\\n    ")
