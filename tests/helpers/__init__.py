"""Shared by several test modules: small runs, generated data, hand-written references."""
