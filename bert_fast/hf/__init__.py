"""Hugging Face folders in and out, without torch.

read.read(folder)           a `bert`, `megatron-bert` or `roberta-prelayernorm` folder as a model of ours
read.save(imported, out)    the same as a run folder with `checkpoints/0`: the command `import`
write.export(path, out)     a checkpoint as their folder, with tokenizer and model card: the command `export`
verify.verify(...)          our logits beside those of transformers (this alone imports torch)

layouts.py     which of their layouts holds a model, and its `config.json` in both directions
tensors.py     their tensors' names and ours: one table, read in both directions
words.py       their tokenizer's files in both directions
weights.py     the files that hold tensors: safetensors, whole or in parts, and PyTorch's
torch_file.py  a `pytorch_model.bin` without executing its pickle
card.py        the model card; task_card.py: that of a fine-tuned model
"""
