"""The shipped configs, and a vocabulary to check them with."""

import importlib.util
import pathlib

FINETUNE = ("glue", "squad", "own")
FOLDER = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in FOLDER.glob("[!_]*.py") if path.stem not in ("common", "common_finetune"))
CONFIGS = [path for path in FILES if path.stem not in FINETUNE]  # pre-training only


def get_config(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


VOCAB = {"size": 30_522, "special_ids": {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}}
