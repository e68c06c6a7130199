"""Import and export of Hugging Face folders, without torch.

read.read(folder)           a `bert`, `megatron-bert` or `roberta-prelayernorm` folder as one of our models
read.save(imported, out)    writes that model as a run folder with `checkpoints/0`: the command `import`
write.export(path, out)     writes a checkpoint as a Hugging Face folder with tokenizer and model card: `export`
verify.verify(...)          compares the export with transformers (the only file that imports torch)

layouts.py     the Hugging Face layout that holds a model, and its `config.json`, in both directions
tensors.py     Hugging Face's tensor names and ours: one table, read in both directions
tokenizer.py   the tokenizer files, in both directions
weights.py     the files that hold tensors: safetensors or PyTorch's, whole or sharded
torch_file.py  reads a `pytorch_model.bin` without executing its pickle
card.py        the model card; task_card.py: the model card of a fine-tuned model
"""
