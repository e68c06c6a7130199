"""Import and export of Hugging Face models, in folders and on the Hub, without torch.

pull.find(name)             the folder that `--hf` names: one on this machine, or a model that it downloads from the Hub
pull.pull(name, out)        writes a model of the Hub as a folder: the command `pull`
read.read(name)             a `bert`, `megatron-bert` or `roberta-prelayernorm` model as one of our models
read.save(imported, out)    writes that model as a run folder with `checkpoints/0`: the command `import`
write.export(path, out)     writes a checkpoint as a Hugging Face folder with tokenizer and model card: the command
                            `export`
push.push(path, repo)       exports a checkpoint and uploads it to the Hub: the command `push`
verify.verify(...)          compares an export with transformers; the only file that imports torch

layouts.py     which Hugging Face layout fits a model; converts `config.json` in both directions
tensors.py     Hugging Face's tensor names and ours: one table, read in both directions
tokenizer.py   reads and writes the tokenizer files
weights.py     reads weights from safetensors or PyTorch files, whole or sharded; writes safetensors
torch_file.py  reads a `pytorch_model.bin` without executing its pickle
hub.py         requests to the Hub: names, retries, and errors that say what to do
metadata.py    the metadata of a model card, which the Hub reads
card.py        the model card of a pre-trained or imported model
task_card.py   the model card of a fine-tuned model
"""
