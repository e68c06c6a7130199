"""What every fine-tuning config starts from: BERT's recipe (Devlin et al. 2019)."""

from ml_collections import ConfigDict

from bert_fast import BadInput, methods
from bert_fast.configs import common

FIXED = dict.fromkeys(("size", "objective", "norm"), "the model is the checkpoint's")
# Devlin et al. (2019), section 4.1: batches of 32, 3 epochs, and whichever of these four learning rates does best on
# the held-out set.
RATES = "2e-5,3e-5,4e-5,5e-5"
# Progressive layer dropping is fine-tuned with one rate per task. The rates are from a table in DeepSpeed's tutorial
# "Progressive Layer Dropping". Batches of 32 and Adam without bias correction are from training/BingBertGlue of
# DeepSpeedExamples. So is the weight decay of 0.01: run_glue_classifier_bert_base.py:892-897 sets it in the parameter
# groups, overriding the 0.0 of glue_bert_base.json. The original trains for 3 to 5 epochs. Here every task trains for 3
# (unverified). The table has no rate for WNLI, so WNLI has the rate of RTE here.
RATES_OF_LAYER_DROP = "rte:7e-5,mrpc:9e-5,stsb:7e-5,cola:5e-5,sst2:7e-5,qnli:9e-5,qqp:2e-4,mnli:3e-5,wnli:7e-5"


def finetune(task: str) -> ConfigDict:
    """BERT's fine-tuning recipe for a task, with the keys of bert_fast/tasks/settings.py."""
    config = ConfigDict()
    config.task = task
    config.seeds = "0,1,2"
    config.learning_rates = RATES  # a plain rate applies to all tasks, TASK:RATE to one task
    config.epochs = 3.0
    config.batch_size = 32
    config.micro_batches = 1
    config.keep = "last"  # which weights of a run to keep: "last", "best" (from its best evaluation), or "none"
    config.widths = 5  # maximum number of batch widths: see bert_fast/tasks/batches.py
    config.random_weights = False  # True is the control: the same model with fresh weights
    config.predict_test = True  # write predictions for the test files, if present
    config.methods = ""

    config.dropout = 0.1  # Devlin et al., A.3: always 0.1
    config.dtype = "float32"

    config.data = ConfigDict()
    config.data.dir = ""
    config.data.seq_len = 128  # `max_seq_length` in google-research/bert's README: GLUE at 128 tokens
    config.data.train_examples = 0  # size of a fixed random sample; 0: all. The same for held_out_examples
    config.data.held_out_examples = 0
    config.data.stride = 128  # SQuAD only: `doc_stride` of run_squad.py
    config.data.max_question = 64  # SQuAD only: `max_query_length` of run_squad.py

    # SQuAD only: `n_best_size`, `max_answer_length` and `null_score_diff_threshold` of run_squad.py.
    config.answers = ConfigDict()
    config.answers.n_best = 20
    config.answers.max_tokens = 30
    config.answers.null_threshold = 0.0

    # Your own files, for the task "own" only: see configs/own.py.
    config.own = ConfigDict()
    config.own.kind = "classes"
    config.own.train = ""
    config.own.valid = ""
    config.own.test = ""
    config.own.text = "text"
    config.own.pair = ""
    config.own.label = "label"
    config.own.valid_share = 0.1  # share of the training file to hold out if there is no valid file

    config.learning_rate = ConfigDict()
    config.learning_rate.warmup = 0.1  # `warmup_proportion` of run_classifier.py
    config.learning_rate.decay = "linear"
    config.learning_rate.decay_from = "start"

    config.search = ConfigDict()  # the search of a method that restarts training afterwards (EarlyBERT)
    config.search.learning_rate = 2e-5
    config.search.epochs = 3.0

    config.optimizer = common.optimizer()  # as in pre-training

    config.eval = ConfigDict()
    config.eval.every = 0  # steps; 0: after each epoch
    config.eval.batch_size = 32

    config.checkpoint = ConfigDict({"every": 1_000})  # steps of a run; 0: only when interrupted

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    for name, arguments in methods.defaults().items():
        config[name] = ConfigDict(arguments)
    return config


def apply_recipe(config: ConfigDict, recipe: str):
    """Changes a config, in place, to a paper's recipe. Raises BadInput if the recipe is unknown."""
    if recipe == "layer_drop":
        config.learning_rates = RATES_OF_LAYER_DROP
        config.optimizer.eps = 1e-8  # default of DeepSpeed's `FusedAdam`
    elif recipe == "early_bert":
        # As in launch_earlybert_glue.sh of VITA-Group/EarlyBERT, the ticket is drawn after 0.2 of an epoch and trained
        # for 2 epochs instead of 3, with `AdamW` of transformers 2.11. The script runs on four GPUs with
        # 32 examples each, so a batch has 128.
        config.methods = "early_bert"
        config.epochs = 2.0
        config.early_bert.update(search=0.1, draw_before_update=True)  # of the 2 epochs
        config.batch_size = 128
        config.learning_rates = "4e-5"
        config.search.update(learning_rate=2e-5, epochs=3.0)
        config.learning_rate.update(warmup=0.0)
        config.optimizer.update(weight_decay=0.0, eps=1e-8, bias_correction=True, eps_before_correction=True)
    elif recipe != "bert":
        raise BadInput(f"config argument recipe={recipe!r}: expected recipe=bert, layer_drop or early_bert")


def debug(config: ConfigDict):
    """Shrinks a config, in place, so that its runs take seconds."""
    config.update(seeds="0,1", epochs=1.0, batch_size=8, widths=2)
    config.learning_rates = "1e-3"
    config.search.learning_rate = 1e-3
    config.data.update(train_examples=64, held_out_examples=32)
    config.eval.batch_size = 8
    config.early_bert.search = 0.5  # 4 steps: after only one or two, all coefficients are still equal
