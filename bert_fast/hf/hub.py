"""Requests to the Hugging Face Hub: names of models, retries, and errors that say what to do.

huggingface_hub transfers the files. It handles the login (`hf auth login`, or HF_TOKEN) and has its own settings
(HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE). It is imported on first use, because most commands do not need it.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from bert_fast import BadInput
from bert_fast.train.report import say

T = TypeVar("T")

WAITS = (1, 2, 4)  # seconds before each further attempt, if the Hub is too busy
TIMEOUT = 30  # seconds without an answer after which a request fails
BUSY = (408, 429, 500, 502, 503, 504)
MAIN = "main"  # the branch that the Hub shows by default
NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
PINNED = re.compile(rf"({NAME.pattern})@[0-9a-f]{{40}}")
LOGIN = "run `hf auth login`, or set HF_TOKEN"


class HubModel(NamedTuple):
    """A model of the Hub at a branch, tag or commit."""

    name: str
    revision: str

    def __str__(self) -> str:
        return self.name if self.revision == MAIN else f"{self.name}@{self.revision}"


def parse(text: str) -> HubModel | None:
    """The model that a text names: ORG/NAME or NAME, each with or without @REVISION. None for any other text."""
    name, at, revision = text.partition("@")
    if not NAME.fullmatch(name) or ".." in name or bool(at) != bool(revision):
        return None
    return HubModel(name, revision or MAIN)


def name_in(origin: str) -> str:
    """The model's name if `origin` is the NAME@COMMIT of a model of the Hub, else ""."""
    found = PINNED.fullmatch(origin)
    return found[1] if found else ""


def client():
    """huggingface_hub's client. Its requests fail after TIMEOUT seconds without an answer."""
    import huggingface_hub

    huggingface_hub.get_session().timeout = TIMEOUT
    return huggingface_hub.HfApi(library_name="bert_fast")


def attempt(call: Callable[[], T]) -> T:
    """The result of a request. While the Hub is too busy, tries again after each of WAITS."""
    for wait in WAITS:
        try:
            return call()
        except failures() as error:
            code = status(cause(error))
            if code not in BUSY:
                raise
            say(f"the Hub is busy ({code}): trying again in {wait} s")
            time.sleep(wait)
    return call()


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises if a request or a transfer fails."""
    from huggingface_hub.errors import HfHubHTTPError

    # The first base class is the HTTP library's error. Which library that is depends on huggingface_hub's version.
    return HfHubHTTPError.__bases__[0], OSError, RuntimeError, ValueError


def cause(error: BaseException) -> BaseException:
    """The failed request behind an error about the cache or about an upload."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status(error: BaseException) -> int | None:
    """The HTTP status of a failed request; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_away(error: BaseException) -> bool:
    """Whether the Hub cannot be reached, or is too busy. Then a copy in the cache may be used."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    error = cause(error)
    code = status(error)
    return code in BUSY or (
        code is None and isinstance(error, (failures()[0], OfflineModeIsEnabled, LocalEntryNotFoundError))
    )


def why(error: BaseException, model: HubModel) -> str:
    """Why a request about a model failed, and the remedy, in one line."""
    from huggingface_hub import constants, errors, get_token

    error = cause(error)
    name, code, page = model.name, status(error), f"{constants.ENDPOINT}/{model.name}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms on {page}, then {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no branch, tag or commit {model.revision}: see {page}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError) or (code == 401 and not get_token()):
        seen = "your token can see" if get_token() else "can be seen without a login"
        return f"the Hub has no model {name} that {seen}: check the name; if it is private, {LOGIN}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"you are not logged in: {LOGIN}"
    if code == 401:
        return f"the Hub rejected the token: {LOGIN} to a valid one"
    if code == 403:
        return f"your token has no permission to do this to {name}: use a token that may write to {name.split('/')[0]}"
    if code in BUSY:
        return f"the Hub answered {code} to {len(WAITS) + 1} attempts: try again in a few minutes"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the model is not in the cache: unset it"
    if is_away(error):
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}): check the network, or HF_ENDPOINT"
    message = " ".join(str(error).split()).rstrip(".")
    return f"the Hub answered {code}: {message}" if code else message


@contextlib.contextmanager
def explained(model: HubModel, what: str, remedy: str) -> Iterator[None]:
    """Turns a failed request inside the `with` block into a BadInput that says `what` failed, why, and the remedy."""
    try:
        yield
    except failures() as error:
        raise BadInput(f"{what}: {why(error, model)}. {remedy}".strip()) from error
