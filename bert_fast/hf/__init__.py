"""Import and export of Hugging Face folders, without torch.

read.read(folder)           a `bert`, `megatron-bert` or `roberta-prelayernorm` folder as one of our models
read.save(imported, out)    writes that model as a run folder with `checkpoints/0`: the command `import`
write.export(path, out)     writes a checkpoint as a Hugging Face folder with tokenizer and model card: the command
                            `export`
verify.verify(...)          compares an export with transformers; the only file that imports torch

layouts.py     which Hugging Face layout fits a model; converts `config.json` in both directions
tensors.py     Hugging Face's tensor names and ours: one table, read in both directions
tokenizer.py   reads and writes the tokenizer files
weights.py     reads files of tensors, safetensors or PyTorch's, whole or sharded; writes safetensors
torch_file.py  reads a `pytorch_model.bin` without executing its pickle
card.py        the model card of a pre-trained or imported model
task_card.py   the model card of a fine-tuned model
"""
