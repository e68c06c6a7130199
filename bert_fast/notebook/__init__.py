"""Helpers for the notebooks in colab/ and for your own: what the runtime has, a folder that outlives it, and pictures.

runtime.check()              what JAX sees here, or an error that says what to click
keep.kept(work, place)       copies a work folder to Google Drive or the Hugging Face Hub while a block runs
pictures                     figures of a run's plan, its curves and a method's state
"""
