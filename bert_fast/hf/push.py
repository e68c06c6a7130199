"""Exports a checkpoint and uploads it to the Hugging Face Hub: the command `push`."""

import pathlib
import tempfile
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.hf import hub, write
from bert_fast.hf.hub import MAIN, HubModel
from bert_fast.hf.metadata import Stated
from bert_fast.hf.write import Export


class Pushed(NamedTuple):
    """What was uploaded.

    url: the page of the commit. changed: False if the Hub already had the same files.
    private: whether the repository is private.
    """

    export: Export
    url: str
    changed: bool
    private: bool


def push(
    path: str | pathlib.Path,
    repo: str,
    private: bool = False,
    revision: str = MAIN,
    given: Stated = Stated(),
    **options,
) -> Pushed:
    """Uploads the export of a checkpoint to ORG/NAME as one commit. Creates the repository or the branch if needed.

    private: create a private repository. options: the options of `write.export`.

    Raises BadInput if `export` refuses the checkpoint, if nobody is logged in, if the repository is public although
    `private` is set, and if the Hub cannot be reached or refuses the upload. After such an error, the Hub is unchanged,
    except that the repository or the branch may have been created.
    """
    model = target(repo, revision)
    api = hub.client()
    what, again = f"{path} was not pushed to {model}", "Run the same command again to continue"
    with hub.explained(model, what, ""):
        hub.attempt(lambda: api.whoami(token=True))  # before the export, which takes time
    place = f'"{repo}"' + (f', revision="{revision}"' if revision != MAIN else "")
    with tempfile.TemporaryDirectory() as folder:
        done = write.export(path, pathlib.Path(folder) / "export", given=given._replace(place=place), **options)
        with hub.explained(model, what, again):
            hub.attempt(lambda: api.create_repo(repo, private=private, exist_ok=True))
            about = hub.attempt(lambda: api.model_info(repo, timeout=hub.TIMEOUT))
            if private and not about.private:
                raise BadInput(
                    f"{repo} exists already and is public, but --private was given: make it private in its settings, "
                    "or choose another --repo"
                )
            if revision != MAIN:
                hub.attempt(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
            before = hub.attempt(lambda: api.model_info(repo, revision=revision, timeout=hub.TIMEOUT)).sha
            commit = hub.attempt(lambda: upload(api, model, done.folder))
    return Pushed(done, commit.commit_url, commit.oid != before, bool(about.private))


def target(repo: str, revision: str) -> HubModel:
    """The repository to push to. Raises BadInput if it is not an ORG/NAME."""
    found = hub.parse(repo)
    if found is None or "/" not in repo or "@" in repo:
        raise BadInput(f"--repo={repo}: expected ORG/NAME, with your name or your organisation's as ORG")
    return HubModel(repo, revision)


def upload(api, model: HubModel, folder: pathlib.Path):
    """Commits all files of a folder together, so that nobody downloads half a model. Returns a `CommitInfo`."""
    import huggingface_hub

    files = [huggingface_hub.CommitOperationAdd(file.name, str(file)) for file in sorted(folder.iterdir())]
    return api.create_commit(model.name, files, commit_message="Upload with bert_fast", revision=model.revision)
