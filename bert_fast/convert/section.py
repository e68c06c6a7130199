"""A part of a config file that records which of its keys were read, so that none is overlooked."""

from collections.abc import Mapping
from typing import Any

from bert_fast import BadInput
from bert_fast.convert.conversion import Conversion


class ConfigSection:
    """The values below one key of a file."""

    def __init__(self, values: Mapping[str, Any], result: Conversion, path: str = ""):
        if not isinstance(values, Mapping):
            raise BadInput(f"{path}={values!r}: expected a group of settings")
        self.values, self.result, self.path = dict(values), result, path

    def name(self, key: str) -> str:
        """The full name of a key, such as `optimizer.params.lr`."""
        return f"{self.path}.{key}" if self.path else key

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which then counts as read. The value "auto" counts as missing, because Hugging Face's
        trainer replaces it.
        """
        if key in self:
            self.result.read[self.name(key)] = self.values[key]
        value = self.values.pop(key, default)
        if value == "auto":
            self.result.leave(self.name(key), value, "the program that read the file chose the value")
            return default
        return default if value is None else value

    def number(self, key: str, default: Any = None) -> Any:
        """Like `take`, for a number. YAML reads 1e-4 as text. Raises BadInput for other text."""
        value = self.take(key, default)
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            raise BadInput(f"{self.name(key)}={value!r}: expected a number") from None

    def part(self, key: str) -> "ConfigSection":
        """The section below a key, or an empty one. The caller must read all of it."""
        return ConfigSection(self.values.pop(key, None) or {}, self.result, self.name(key))

    def set(self, key: str, ours: str, **default):
        """Converts a key to our key `ours`. `default=...` is the source project's default, if it has one."""
        name, given = self.name(key), key in self
        value = self.number(key, default.get("default"))
        if value is not None:
            self.result.set(ours, value, name if given else f"default of {name}")

    def leave(self, reasons: Mapping[str, str]):
        """Lists which of these keys the section has, each with the reason why it is not converted."""
        for key, reason in reasons.items():
            if key in self:
                self.result.leave(self.name(key), self.values.pop(key), reason)

    def end(self):
        """Lists the remaining keys as unknown."""
        for key, value in self.values.items():
            self.result.unknown[self.name(key)] = value
        self.values = {}
