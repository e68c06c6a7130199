"""The text field of a record, decoded and checked."""

from collections.abc import Callable, Iterator

Report = Callable[[str, str, str], None]  # called with place, problem and remedy; see corpora.Bad


def document(value: object, place: str, text_key: str, bad: Report) -> Iterator[str]:
    """Yields the text of one record. If the record is unusable, reports it to `bad` and yields nothing."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            bad(place, f"{text_key!r} is not UTF-8 at byte {error.start}", "Convert it")
            return
    if value is None or (isinstance(value, str) and not value.strip()):
        bad(place, "an empty document", "Remove the record")
    elif not isinstance(value, str):
        bad(
            place,
            f"{text_key!r} is {type(value).__name__}, expected a string",
            "Use --text_key to name the key of the text",
        )
    else:
        yield value
