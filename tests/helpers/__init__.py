"""Helpers that several test modules share: small runs, generated data and hand-written references."""
