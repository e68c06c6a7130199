"""What several test modules share: small runs, made data, references written by hand."""
