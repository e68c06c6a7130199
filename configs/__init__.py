"""The shipped configs, one file each. `--config=NAME:ARGUMENTS` takes one by name, from any folder.

To change one, write a file of your own that imports it: `from bert_fast.configs import bert`.
"""
