"""The shipped configs, one file each. `--config=NAME:ARGUMENTS` takes one by name, from any folder.

To change one, write your own file that imports it: `from bert_fast.configs import bert`.
"""
