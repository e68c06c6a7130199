# Cells that the notebooks share, by tag. `python colab/make.py` copies them into the notebooks.

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

# %% tags=["finish"]
# @title Before you close this tab
# @markdown The training cells have copied everything. Drive's mount may still be uploading. This cell waits for it.
if KEEP == "drive":
    drive.flush_and_unmount()
