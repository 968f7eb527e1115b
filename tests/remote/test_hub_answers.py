"""Answers that are not those of the Hub, and contents that are not those it lists."""

import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace as Answer
from typing import Any

import pytest

from localrank_cli.errors import OutputError, UnreadableError
from localrank_cli.remote import hub as module
from localrank_cli.remote.address import HubAddress
from localrank_cli.remote.hub import Hub
from localrank_cli.remote.mirror import Mirror
from localrank_cli.remote.private import Private
from localrank_cli.remote.shelf import Shelf
from localrank_cli.remote.store import StoredFile
from tests.remote.hub_server import git_hash

client = pytest.importorskip("huggingface_hub")
ONE, OTHER = "a" * 40, "b" * 40
CONTENT = b"weights"
SPEC = HubAddress("lab/net", ("*",))


def entry(path: Any = "model.safetensors", size: Any = 7, hashed: Any = ONE) -> Any:
    return Answer(path=path, size=size, blob_id=hashed, lfs=None)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Hub:
    answers(monkeypatch, [("step0", ONE)])
    return Hub("lab/net", "hf://lab/net@*")


def answers(
    patch: pytest.MonkeyPatch,
    branches: Any,
    tags: Sequence[Any] = (),
    entries: Sequence[Any] = (),
) -> None:
    """Let the client return these revisions and files."""

    def refs(*_: object) -> Any:
        named = ([Answer(name=n, target_commit=c) for n, c in some] for some in (branches, tags))
        return Answer(**dict(zip(("branches", "tags"), named, strict=True)))

    patch.setattr(client.HfApi, "list_repo_refs", refs)
    patch.setattr(client.HfApi, "list_repo_tree", lambda *_, **__: iter(entries or [entry()]))


def test_a_branch_and_a_tag_of_one_name_and_commit(
    store: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, [("step0", ONE), ("step5", OTHER)], [("step0", ONE)])
    assert store.listing(SPEC).refs == {"step0": ONE, "step5": OTHER}


@pytest.mark.parametrize(
    ("branches", "tags", "words"),
    [
        (
            [("step0", ONE)],
            [("step0", OTHER)],
            "'step0' is a branch and a tag at",
        ),
        ([("step0", ONE), ("step0", OTHER)], [], "different commits: aaaa"),
        ([("step0", ONE), ("step0/x", OTHER)], [], "'step0' and 'step0/x' cannot both be placed"),
        ([(7, ONE)], [("step0", None)], "gives 'None' for a revision"),
        ([("x" * 10_000 + "\n", ONE)], [], "cannot be a file name"),
        (None, [], "the response is not from the Hub's API"),
        ([], [], "no revision matches '\\*'; there are none"),
    ],
)
def test_revisions_that_cannot_be_told_apart_or_placed(
    store: Hub, monkeypatch: pytest.MonkeyPatch, branches: Any, tags: Any, words: str
) -> None:
    answers(monkeypatch, branches, tags)
    with pytest.raises(UnreadableError, match=words) as caught:
        store.listing(SPEC)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "odd", [entry(path=None), entry(size="7"), entry(size=True), entry(hashed=None)]
)
def test_entries_that_no_file_has(store: Hub, monkeypatch: pytest.MonkeyPatch, odd: Any) -> None:
    answers(monkeypatch, [("step0", ONE)], entries=[entry(), odd])
    with pytest.raises(UnreadableError, match="impossible names, sizes or hashes"):
        store.listing(SPEC)


def test_a_list_of_files_without_an_end(store: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FILES", 10)
    answers(monkeypatch, [("step0", ONE)], entries=[entry()] * 11)
    with pytest.raises(UnreadableError, match="over 10 files are listed"):
        store.listing(SPEC)


@pytest.mark.parametrize("version", [git_hash(CONTENT), hashlib.sha256(CONTENT).hexdigest()])
def test_the_content_is_compared_with_its_hash(store: Hub, tmp_path: Path, version: str) -> None:
    path = tmp_path / "model.safetensors"
    file = StoredFile("lab/net/model.safetensors", f"{ONE}/model.safetensors", 7, version)
    path.write_bytes(CONTENT)
    store.check(file, path)
    path.write_bytes(b"Weights")
    with pytest.raises(UnreadableError, match="differs from the file that the Hub lists"):
        store.check(file, path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more(
    store: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    """It is no fault of the connection, and none of one checkpoint alone."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, "no more")

    monkeypatch.setattr(client, "hf_hub_download", full)
    monkeypatch.setattr(client, "try_to_load_from_cache", lambda *_, **__: None)
    mirror = Mirror(store, Private.make("hf://lab/net", tmp_path), Shelf())
    file = StoredFile("lab/net/model.safetensors", f"{ONE}/model.safetensors", 7, ONE)
    with pytest.raises(OutputError, match=r"downloads cannot be written there .*--cache DIR"):
        mirror.bring([file])


def test_what_a_server_refuses_is_not_called_another_revision(
    store: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own error says only that the file is not in its cache."""

    class Refused(Exception):
        response = Answer(status_code=429)

    def refuse(*_: object, **__: object) -> None:
        raise client.errors.LocalEntryNotFoundError("not in the cache") from Refused("429")

    monkeypatch.setattr(client, "hf_hub_download", refuse)
    file = StoredFile("lab/net/model.safetensors", f"{ONE}/model.safetensors", 7, ONE)
    with pytest.raises(UnreadableError, match=r"Refused: 429\. Wait a few minutes"):
        store.download(file, Path("incoming"))
