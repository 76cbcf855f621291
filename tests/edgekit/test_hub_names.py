"""Names from outside: what is taken, what is left out, and what condemns a repository."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BadDataError, MissingInputError, UsageError
from edgekit.hub_names import check_names, fault_of, matches, select, why_not
from edgekit.origin import Want, hub_reference, parse_origin

SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
REPOSITORY = [
    ".gitattributes",
    "README.md",
    "LICENSE",
    "config.json",
    *SHARDS,
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "modeling_evil.py",
    "tokenizer.json",
    "original/consolidated.00.pth",
    "onnx/model.onnx",
    "model-Q4_K_M.gguf",
]

HOSTILE = [
    *("../config.json", "a/../../config.json", "..", ".", "a/./b", "a//b", "", "a/", "/etc/passwd"),
    *("\\\\host\\share\\x.json", "..\\config.json", "C:\\x.json", "C:x.json", "config.json\0.txt"),
    *("a\nb.json", "a\x7fb", "a\u202eb.json", "\u200bconfig.json", "~/x.json", "~root"),
    *("CON", "con.json", "nul.safetensors", "a/COM1", "LPT9.txt", "config.json.", "config.json "),
    *("\ud800.json", "x" * 256, "/".join("abcdefghi"), "a:b.json", "file:///etc/passwd"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_condemns_the_repository(name: str) -> None:
    with pytest.raises(BadDataError) as caught:
        check_names(["config.json", name], "org/model")
    assert caught.value.exit_code == 65
    assert caught.value.code == "hostile_name"
    assert ascii(name)[:40] in caught.value.message


@pytest.mark.parametrize("name", [None, 7, ["config.json"], {"a": 1}, b"config.json"])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(BadDataError):
        check_names([name], "org/model")


@pytest.mark.parametrize(
    "twins",
    [
        ("config.json", "Config.json"),
        ("caf\u00e9.json", "cafe\u0301.json"),
        ("LICENSE", "license"),
        ("config.json", "config.json"),
    ],
)
def test_two_names_that_are_one_file_somewhere(twins: tuple[str, str]) -> None:
    with pytest.raises(BadDataError, match="one file on some systems"):
        check_names([*twins], "org/model")


def test_a_hundred_thousand_files_are_refused_without_reading_them_all() -> None:
    def endless() -> object:
        number = 0
        while True:
            number += 1
            assert number < 30_000
            yield f"{number}.json"

    with pytest.raises(BadDataError) as caught:
        check_names(endless(), "org/model")  # type: ignore[arg-type]
    assert caught.value.code == "too_many_files"


@given(st.text(max_size=40) | st.lists(st.sampled_from(["a", "..", ".", "", "b.c"])).map("/".join))
def test_a_safe_name_stays_in_its_folder_on_every_system(name: str) -> None:
    if fault_of(name) is not None:
        return
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(name)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert not path.drive
        assert len(path.parts) == len(name.split("/"))


def test_without_patterns_one_checkpoint_is_taken() -> None:
    chosen = select(REPOSITORY, (), "org/model")
    assert chosen.taken == (
        "README.md",
        "LICENSE",
        "config.json",
        *SHARDS,
        "model.safetensors.index.json",
        "tokenizer.json",
    )
    why = {x.name: x.why for x in chosen.left_out}
    assert "second time" in why["consolidated.safetensors"]
    assert "run code" in why["pytorch_model.bin"]
    assert "program code" in why["modeling_evil.py"]
    assert "run code" in why["original/consolidated.00.pth"]
    assert "made from" in why["model-Q4_K_M.gguf"]
    assert set(why) | set(chosen.taken) == set(REPOSITORY)


def test_patterns_choose_but_cannot_bring_in_code_or_pickles() -> None:
    chosen = select(REPOSITORY, ("*",), "org/model")
    assert "modeling_evil.py" not in chosen.taken
    assert "pytorch_model.bin" not in chosen.taken
    only = select(REPOSITORY, ("model-Q4_K_M.gguf",), "org/model")
    assert only.taken == ("model-Q4_K_M.gguf",)


def test_patterns_do_not_cross_folders() -> None:
    assert matches("a.json", "*.json")
    assert not matches("original/a.json", "*.json")
    assert matches("original/a.json", "original/*.json")


def test_pickles_alone_are_refused() -> None:
    with pytest.raises(BadDataError) as caught:
        select(["config.json", "pytorch_model.bin"], (), "org/model")
    assert caught.value.code == "pickle_refused"
    assert "pytorch_model.bin" in caught.value.message


def test_a_missing_shard_is_named() -> None:
    with pytest.raises(BadDataError, match=SHARDS[1]):
        select(["config.json", SHARDS[0]], (), "org/model")


def test_of_several_finished_files_one_must_be_named() -> None:
    names = ["a-Q4_K_M.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]
    with pytest.raises(UsageError, match="holds 2 finished files"):
        select(names, (), "org/model")
    assert select(names, ("a-Q8_0-*-of-00002.gguf",), "org/model").taken == tuple(names[1:])
    assert select(names[:1], (), "org/model").taken == tuple(names[:1])


def test_patterns_for_weights_that_are_not_there() -> None:
    with pytest.raises(MissingInputError, match="holds no weights called"):
        select(["config.json", "model.safetensors"], ("config.json", "m-*.gguf"), "org/model")


def test_nothing_of_use() -> None:
    with pytest.raises(MissingInputError):
        select(["run.py", "notes.txt"], (), "org/model")


def test_what_the_catalogue_asks_for_may_be_taken() -> None:
    """Every pattern of the catalogue names files that are ever taken."""
    from edgekit.catalogue import load_models

    for card in load_models().values():
        for source in card.sources:
            for pattern in source.allow:
                name = pattern.replace("*", "00001") if pattern[-1] != "*" else pattern[:-1]
                assert why_not(name) is None, (card.id, pattern)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("org/name", Want("org/name", None)),
        ("hub:org/name", Want("org/name", None)),
        ("org/name@main", Want("org/name", "main")),
        ("org/name@refs/pr/1", Want("org/name", "refs/pr/1")),
        ("org/name/a-Q4_K_M.gguf", Want("org/name", None, ("a-Q4_K_M.gguf",))),
        ("org/name/q/a.gguf@v1", Want("org/name", "v1", ("q/a.gguf",))),
        (
            "org/name/a-00001-of-00003.gguf",
            Want("org/name", None, ("a-*-of-00003.gguf",)),
        ),
        ("name", None),
        ("org/name/model.safetensors", None),
        ("../name", None),
        ("org/../name", None),
        ("org/na me", None),
        ("org/name@", None),
        ("https://huggingface.co/org/name", None),
    ],
)
def test_references_to_a_hub(text: str, want: Want | None) -> None:
    assert hub_reference(text) == want


def test_what_is_on_this_machine_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_origin("org/name") == Want("org/name", None)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_origin("org/name") == Path("org/name")
    assert parse_origin("hub:org/name") == Want("org/name", None)
    (tmp_path / "x.txt").touch()
    with pytest.raises(UsageError):
        parse_origin("x.txt")
    for absent in ("./org/other", "/no/where", "nothing"):
        with pytest.raises(MissingInputError):
            parse_origin(absent)
