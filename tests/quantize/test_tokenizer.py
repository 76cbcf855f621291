"""The tokenizer keys against gguf-py's reading of the same files, and llama.cpp's splitting."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from edgekit_quantize.convert import convert
from edgekit_quantize.errors import BadCheckpointError, MissingFileError, QuantizeError
from edgekit_quantize.gguf_write import encode_header
from edgekit_quantize.metadata import Value
from edgekit_quantize.pretokenizers import KNOWN, canonical_steps, recognise
from edgekit_quantize.tokenizer import read_tokenizer
from tests.support import llama_oracle
from tests.support.checkpoints import CONTROL_TOKENS, TEKKEN_SPLIT, make_checkpoint, write_tokenizer
from tests.support.tokenize_oracle import write_vocab_gguf

VOCAB = 600
CONFIG: dict[str, object] = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCAB}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, VOCAB)
    return tmp_path


def keys_of(folder: Path, vocab: int = VOCAB, arch: str = "llama") -> dict[str, Value]:
    tokenizer = read_tokenizer(folder, CONFIG, vocab, arch)
    return {entry.key: entry.value for entry in tokenizer.metadata}


def edit(folder: Path, name: str, **changes: object) -> dict[str, Any]:
    path = folder / name
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    value.update(changes)
    path.write_text(json.dumps(value), encoding="utf-8")
    return value


def special_vocab_keys(folder: Path) -> dict[str, object]:
    """What gguf-py's SpecialVocab writes for the folder."""
    writer = gguf.GGUFWriter(path=None, arch="llama")
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
    return {
        key: value.value for key, value in writer.kv_data[0].items() if key.startswith("tokenizer")
    }


def assert_as_gguf_py(folder: Path) -> None:
    ours = keys_of(folder)
    theirs = special_vocab_keys(folder)
    for key, value in theirs.items():
        found = ours[key]
        assert (list(found) if isinstance(found, tuple) else found) == value, key
    own = {key for key in ours if key.startswith("tokenizer.ggml.fim_")}
    basic = {f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type")}
    assert ours.keys() - own - basic == theirs.keys()
    order = [key for key in ours if key in theirs]
    assert order == list(theirs)


def test_keys_are_those_of_gguf_py(folder: Path) -> None:
    assert_as_gguf_py(folder)


def test_a_byte_level_post_processor_adds_nothing(folder: Path) -> None:
    edit(folder, "tokenizer.json", post_processor={"type": "ByteLevel", "trim_offsets": False})
    # gguf-py 0.19 still believes the settings here; llama.cpp's own tree has since changed.
    assert keys_of(folder)["tokenizer.ggml.add_bos_token"] is False


def test_settings_decide_without_a_post_processor(folder: Path) -> None:
    edit(folder, "tokenizer.json", post_processor=None)
    edit(folder, "tokenizer_config.json", add_eos_token=False)
    assert_as_gguf_py(folder)


def test_special_tokens_as_objects_and_from_the_config(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", bos_token={"content": "<s>"}, eos_token="no such token")
    assert_as_gguf_py_with_config(folder)


def assert_as_gguf_py_with_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    assert_as_gguf_py(folder)


def test_old_merges_and_spaces(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    edit(folder, "tokenizer.json", model=model)
    assert_as_gguf_py(folder)
    model["merges"] = [["a b", "c"], ["d", "e"]]
    edit(folder, "tokenizer.json", model=model)
    assert_as_gguf_py(folder)


def test_tokens_and_types(folder: Path) -> None:
    keys = keys_of(folder, VOCAB + 2)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert tokens[: len(CONTROL_TOKENS)] == CONTROL_TOKENS
    assert set(types[: len(CONTROL_TOKENS)]) == {3}
    assert set(types[len(CONTROL_TOKENS) : VOCAB]) == {1}
    assert tokens[VOCAB:] == (f"[PAD{VOCAB}]", f"[PAD{VOCAB + 1}]")
    assert types[VOCAB:] == (5, 5)


def test_added_tokens_that_are_not_special(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = tokenizer["added_tokens"]
    for text, number in (("▁▁", VOCAB), ("<|looks|>", VOCAB + 1)):
        added.append({"id": number, "content": text, "special": False, "normalized": False})
    edit(folder, "tokenizer.json", added_tokens=added)
    keys = keys_of(folder, VOCAB + 2)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert (tokens[VOCAB], types[VOCAB]) == ("  ", 4)
    assert (tokens[VOCAB + 1], types[VOCAB + 1]) == ("<|looks|>", 3)


def test_fim_ids(folder: Path) -> None:
    keys = keys_of(folder)
    names = ("pre", "suf", "mid")
    ids = [keys[f"tokenizer.ggml.fim_{name}_token_id"] for name in names]
    assert ids == [CONTROL_TOKENS.index(t) for t in ("[PREFIX]", "[SUFFIX]", "[MIDDLE]")]


def test_chat_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from the file")
    assert "messages" in str(keys_of(folder)["tokenizer.chat_template"])
    edit(folder, "tokenizer_config.json", chat_template=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert keys_of(folder)["tokenizer.chat_template"] == "from the file"
    assert_as_gguf_py(folder)
    named = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
    edit(folder, "tokenizer_config.json", chat_template=named)
    assert_as_gguf_py(folder)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": {"type": "Unigram"}}, "unknown_tokenizer"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "unknown_tokenizer"),
        ({"pre_tokenizer": None}, "unknown_tokenizer"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "unknown_tokenizer"),
        ({"model": None}, "unknown_tokenizer"),
        ({"model": {"vocab": ["a"], "ignore_merges": True}}, "bad_tokenizer"),
        ({"model": {"vocab": {"a": -1}}}, "bad_tokenizer"),
        ({"model": {"vocab": {"a": 5, "b": 5}}, "added_tokens": []}, "bad_tokenizer"),
        ({"model": {"vocab": {"a": VOCAB}}}, "vocab_mismatch"),
        ({"model": {"vocab": {"a": 30}, "merges": [["a"]]}}, "bad_tokenizer"),
        ({"model": {"vocab": {"a": 30}, "merges": {}}}, "bad_tokenizer"),
        ({"added_tokens": [{"content": "x"}]}, "bad_tokenizer"),
        ({"added_tokens": [{"content": "!", "id": 599}]}, "bad_tokenizer"),
        ({"added_tokens": ["x"]}, "bad_tokenizer"),
    ],
)
def test_what_is_refused(changes: dict[str, object], code: str, folder: Path) -> None:
    edit(folder, "tokenizer.json", **changes)
    with pytest.raises(BadCheckpointError) as caught:
        keys_of(folder)
    assert caught.value.code == code
    assert caught.value.exit_code == 65


def test_an_unknown_pattern_is_shown_with_the_known_ones(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, VOCAB, split=TEKKEN_SPLIT.replace(r"\p{N}", r"\p{N}{1,4}", 1))
    with pytest.raises(BadCheckpointError) as caught:
        keys_of(tmp_path)
    assert caught.value.code == "unknown_tokenizer"
    assert "1,4" in str(caught.value)
    assert "tekken" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ("tekken.json", "bad_tokenizer"),
        ("tokenizer.model", "bad_tokenizer"),
        ("vocab.json", "unknown_tokenizer"),
    ],
)
def test_other_kinds_of_tokenizer_files(other: str, code: str, tmp_path: Path) -> None:
    (tmp_path / other).write_text("{}")
    with pytest.raises(BadCheckpointError, match=other) as caught:
        keys_of(tmp_path)
    assert caught.value.code == code


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"tokenizer\.json"):
        keys_of(tmp_path)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_part_may_be_anything(data: st.DataObject, folder: Path) -> None:
    """Whatever stands anywhere in the two files, the answer is keys or a typed error."""
    for name in data.draw(
        st.sampled_from([["tokenizer.json"], ["tokenizer_config.json"], ["tokenizer.json"] * 2])
    ):
        original = (folder / name).read_text(encoding="utf-8")
        root: Any = json.loads(original)
        node = root
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys[:40]))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
                break
            node = node[key]
        node[key] = data.draw(junk)
        (folder / name).write_text(json.dumps(root), encoding="utf-8")
        try:
            encode_header(read_tokenizer(folder, CONFIG, VOCAB, "llama").metadata, [])
        except QuantizeError as error:
            assert error.code  # noqa: PT017
        finally:
            (folder / name).write_text(original, encoding="utf-8")


def test_half_a_character(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", chat_template="\ud800")
    with pytest.raises(BadCheckpointError) as caught:
        encode_header(read_tokenizer(folder, CONFIG, VOCAB, "llama").metadata, [])
    assert caught.value.code == "bad_text"


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, object]:
    return {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": behavior,
        "invert": invert,
    }


BYTES_ONLY = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def test_equal_ways_to_say_one_rule() -> None:
    raw = "[\r\n]+x"
    escaped = r"[\r\n]+x"
    for step in (split(raw), split(escaped), split(raw, "Removed", invert=True)):
        sequence = {"type": "Sequence", "pretokenizers": [step, BYTES_ONLY]}
        assert canonical_steps(sequence) == (escaped,)


@pytest.mark.parametrize(
    "step",
    [
        split("x", "Removed"),
        split("x", "MergedWithNext"),
        {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "Digits", "individual_digits": False},
        {"type": "Whitespace"},
        "x",
    ],
)
def test_steps_that_match_nothing(step: object) -> None:
    with pytest.raises(BadCheckpointError):
        recognise(step, ignore_merges=False)


def test_gpt2_and_the_two_meanings_of_llama3s_pattern() -> None:
    assert (
        recognise({"type": "ByteLevel", "add_prefix_space": False}, ignore_merges=False) == "gpt-2"
    )
    llama3 = next(known for known in KNOWN if known.pre == "llama-bpe").steps[0]
    assert recognise(split(llama3), ignore_merges=True) == "llama-bpe"
    assert recognise(split(llama3), ignore_merges=False) == "dbrx"


TEXTS = [
    "hello world",
    "def f(x):\n    return x + 1  # ok\n\n\n",
    "I've 3 33 333 apples, 3.14!  \t\n  end",
    "HTTPServer camelCase ALLCAPS\r\nline/path//x",
    "Приве́т мир — 你好, 1234567 años",
    "tabs\t\tand   spaces   ",
    "emoji 🚀🦙 ok",
]


def digits_and_bytes(regexes: tuple[str, ...]) -> dict[str, object]:
    steps: list[object] = []
    for regex in regexes:
        if regex == "single digits":
            steps.append({"type": "Digits", "individual_digits": True})
        elif regex == "byte-level with its own regex":
            steps.append(
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                }
            )
        else:
            steps.append(split(regex))
    last = steps[-1]
    if not (isinstance(last, dict) and last["type"] == "ByteLevel"):
        steps.append(BYTES_ONLY)
    return {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize("pre", dict.fromkeys(known.pre for known in KNOWN))
def test_llama_cpp_splits_as_tokenizer_json_says(pre: str, tmp_path: Path) -> None:
    """The name we write makes llama.cpp cut text as the tokenizers library does."""
    known = next(known for known in KNOWN if known.pre == pre)
    folder = make_checkpoint(tmp_path / "c", vocab=20_000, layers=1, hidden=32, ffn=32, head_dim=8)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["ignore_merges"] = bool(known.ignore_merges) or pre == "tekken"
    if pre == "deepseek-llm":
        # llama.cpp leaves runs of digits whole: such vocabularies join no two of them.
        model["merges"] = [m for m in model["merges"] if not re.search("[0-9].*[0-9]", "".join(m))]
    edit(folder, "tokenizer.json", model=model, pre_tokenizer=digits_and_bytes(known.steps))
    if known.arch is None:
        convert(folder, tmp_path / "m.gguf", "BF16", threads=1)
    else:
        metadata = read_tokenizer(folder, CONFIG, 20_000, known.arch).metadata
        write_vocab_gguf(tmp_path / "m.gguf", metadata)
    theirs = llama_oracle.call(
        {"do": "tokenize", "model": str(tmp_path / "m.gguf"), "texts": TEXTS}
    )
    hf = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    for text, ids in zip(TEXTS, theirs, strict=True):
        assert ids == hf.encode(text, add_special_tokens=False).ids, text
