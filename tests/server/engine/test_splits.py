"""Models of several files: found by the names of a series, loaded from wherever these lead."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekit_quantize.resplit import pieces
from edgekit_server.engine import kvfile, wire
from edgekit_server.engine.splits import files_of, total_bytes
from edgekit_server.engine.wire import Generate
from edgekit_server.errors import BadModelError, ModelMissingError
from tests.support.child import GREEDY, child, settings
from tests.support.pocket import convert_pocket


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_pocket(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def series(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Links of a series, to files that are named by their content."""
    folder = tmp_path_factory.mktemp("series")
    (folder / "blobs").mkdir()
    names = []
    for piece in pieces(whole, 2_500_000):
        data = b"".join(piece.chunks())
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        names.append(folder / f"model-{piece.number + 1:05d}-of-{piece.count:05d}.gguf")
        names[-1].symlink_to(Path("blobs") / blob.name)
    return names


def test_a_series_is_resolved_in_order(series: list[Path], whole: Path) -> None:
    found = files_of(series[0])
    assert len(found) > 2
    assert found == [name.resolve() for name in series]
    assert {file.parent.name for file in found} == {"blobs"}
    assert files_of(whole) == [whole]
    assert total_bytes(series[0]) == sum(file.stat().st_size for file in found)


def test_what_is_no_whole_series_is_said(series: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match="not the first"):
        files_of(series[1])
    for name in series[:-1]:
        (tmp_path / name.name).symlink_to(name.resolve())
    with pytest.raises(ModelMissingError, match=series[-1].name):
        files_of(tmp_path / series[0].name)
    (tmp_path / series[-1].name).symlink_to("/nowhere/at-all")
    with pytest.raises(ModelMissingError, match="/nowhere/at-all"):
        files_of(tmp_path / series[0].name)


def test_kept_states_are_of_all_files(series: list[Path], tmp_path: Path) -> None:
    digests = {kvfile.model_digest(series[0])}
    for name in series:
        data = name.read_bytes()
        (tmp_path / name.name).write_bytes(data)
    digests.add(kvfile.model_digest(tmp_path / series[0].name))
    assert len(digests) == 1
    data = bytearray((tmp_path / series[-1].name).read_bytes())
    data[0] ^= 1
    (tmp_path / series[-1].name).write_bytes(data)
    assert kvfile.model_digest(tmp_path / series[0].name) not in digests


def test_the_answers_are_those_of_the_one_file(series: list[Path], whole: Path) -> None:
    answers, hellos = [], []
    for path in (whole, series[0]):
        with child(settings(path)) as made:
            hello = made.next()
            assert isinstance(hello, wire.Hello)
            hellos.append((hello.size_bytes, hello.n_params, hello.n_vocab, hello.chat_template))
            maps = Path(f"/proc/{made.process.pid}/maps").read_text()
            for file in files_of(path):
                assert str(file) in maps  # mapped where it lies, under no other name
            outputs = made.answer(Generate(1, list(range(40, 80)), 64, sampling=GREEDY))
            answers.append([token for output in outputs for token in output.tokens])
    assert len(answers[0]) == 64
    assert answers[0] == answers[1]
    assert hellos[0] == hellos[1]


def test_a_missing_file_is_named(series: list[Path], tmp_path: Path) -> None:
    for name in series[:-1]:
        (tmp_path / name.name).symlink_to(name.resolve())
    with child(settings(tmp_path / series[0].name)) as made:
        fatal = made.next()
        assert isinstance(fatal, wire.Fatal)
        assert fatal.code == "model_missing"
        assert series[-1].name in fatal.message
