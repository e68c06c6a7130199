"""The shipped configs, one file each. `--config=NAME:ARGUMENTS` takes one by name, from any folder.

A fork starts with a copy: a file of your own that imports what it changes, `from bert_fast.configs import bert`.
"""
