"""SentencePiece and tekken files: which one is read, what is written, what is refused."""

import base64
import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit_quantize.convert import convert
from edgekit_quantize.errors import BadCheckpointError, QuantizeError
from edgekit_quantize.gguf_write import encode_header
from edgekit_quantize.metadata import Value
from edgekit_quantize.pretokenizers import KNOWN
from edgekit_quantize.sentencepiece import parse_sentencepiece
from edgekit_quantize.tekken import OLD_CONTROL_TOKENS
from edgekit_quantize.tokenizer import read_tokenizer
from edgekit_quantize.vocabulary import MAX_TOKENS, byte_letters
from tests.support import llama_oracle, tokenize_oracle, vocabularies
from tests.support.checkpoints import byte_alphabet, make_checkpoint, write_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def part(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece(text: str, score: float = 0.0, kind: int = NORMAL) -> bytes:
    body = part(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return part(1, body + (number(3, kind) if kind != NORMAL else b""))


def spm(
    *,
    head: tuple[tuple[str, int], ...] = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)),
    words: tuple[str, ...] = ("▁", "a", "b", "▁a", "ab", "▁ab"),
    tail: bytes = b"",
    model_type: int = 2,
    trainer: bytes = b"",
    normalizer: bytes = b"",
    n_bytes: int = 256,
) -> bytes:
    """Write a small model with all bytes, as the sentencepiece library would."""
    data = b"".join(piece(text, 0.0, kind) for text, kind in head)
    data += b"".join(piece(f"<0x{b:02X}>", 0.0, BYTE) for b in range(n_bytes))
    data += b"".join(piece(word, -float(i)) for i, word in enumerate(words))
    data += tail + part(2, number(3, model_type) + number(35, 1) + trainer)
    return data + part(3, number(4, 0) + normalizer)


SPM_SIZE = 3 + 256 + 6


def keys_of(
    folder: Path, size: int, arch: str = "llama", config: dict[str, Any] | None = None
) -> dict[str, Value]:
    return {k.key: k.value for k in read_tokenizer(folder, config or {}, size, arch).metadata}


def table(keys: dict[str, Value], start: int = 0) -> list[tuple[object, object]]:
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list | tuple)
    assert isinstance(kinds, list | tuple)
    return list(zip(tokens[start:], kinds[start:], strict=True))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def refused(folder: Path, size: int = SPM_SIZE) -> BadCheckpointError:
    with pytest.raises(BadCheckpointError) as caught:
        keys_of(folder, size)
    assert caught.value.exit_code == 65
    return caught.value


# SentencePiece models


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"]
)
def test_our_reader_reads_what_protobuf_reads(name: str) -> None:
    from sentencepiece import sentencepiece_model_pb2

    data = vocabularies.mistral_data(name).read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(data)
    model = parse_sentencepiece(data)
    assert model.texts == tuple(p.piece for p in proto.pieces)
    assert model.scores == tuple(p.score for p in proto.pieces)
    assert model.kinds == tuple(p.type for p in proto.pieces)
    assert model.model_type == proto.trainer_spec.model_type
    assert dict(model.special_ids) == {"unk": 0, "bos": 1, "eos": 2}
    assert model.add_dummy_prefix == proto.normalizer_spec.add_dummy_prefix
    assert model.remove_extra_whitespaces == proto.normalizer_spec.remove_extra_whitespaces


def test_the_table_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm())
    keys = keys_of(tmp_path, SPM_SIZE + 2)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.pre"] == "default"
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert table(keys)[:4] == [
        ("<unk>", UNKNOWN),
        ("<s>", CONTROL),
        ("</s>", CONTROL),
        ("<0x00>", BYTE),
    ]
    assert table(keys, SPM_SIZE - 1) == [
        ("▁ab", NORMAL),
        (f"[PAD{SPM_SIZE}]", UNUSED),
        (f"[PAD{SPM_SIZE + 1}]", UNUSED),
    ]
    scores = keys["tokenizer.ggml.scores"]
    assert isinstance(scores, list | tuple)
    assert list(scores[-4:]) == [-4.0, -5.0, -10000.0, -10000.0]
    ids = [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos")]
    assert ids == [0, 1, 2]
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False


def test_tokens_added_after_training(tmp_path: Path) -> None:
    """added_tokens.json, then tokenizer_config.json's decoder: CodeLlama's four, Gemma's bars."""
    markers = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    tail = piece("▁▁", 0.0, USER_DEFINED)
    (tmp_path / "tokenizer.model").write_bytes(spm(tail=tail))
    size = SPM_SIZE + 1 + len(markers)
    first = SPM_SIZE + 1
    write_json(tmp_path / "added_tokens.json", {"<pad>": first, "▁<SUF>": first + 1})
    decoder = {str(first + i): {"content": text, "special": True} for i, text in enumerate(markers)}
    decoder[str(size)] = {"content": "<image_soft_token>", "special": True}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    tokenizer = read_tokenizer(tmp_path, {}, size, "llama")
    keys = {k.key: k.value for k in tokenizer.metadata}
    assert table(keys, SPM_SIZE) == [
        ("  ", USER_DEFINED),
        *((text, CONTROL) for text in markers),
    ]
    names = ("fim_pre", "fim_suf", "fim_mid", "eot")
    ids = [keys[f"tokenizer.ggml.{name}_token_id"] for name in names]
    assert ids == [first, first + 1, first + 2, first + 3]
    assert "<image_soft_token>" in tokenizer.reason
    gguf = tokenize_oracle.write_vocab_gguf(tmp_path / "v.gguf", tokenizer.metadata)
    about = tokenize_oracle.describe(gguf)
    assert [about[name] for name in names] == ids
    assert (about["bos"], about["get_add_bos"], about["n_tokens"]) == (1, 1, size)


def test_a_model_longer_than_the_embedding(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm())
    assert refused(tmp_path, SPM_SIZE - 1).code == "vocab_mismatch"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_type": 1}, "unknown_tokenizer", "Unigram"),
        ({"model_type": 4}, "unknown_tokenizer", "type 4"),
        ({"normalizer": part(2, b"x" * 40)}, "unknown_tokenizer", "normalizes"),
        ({"normalizer": number(4, 1)}, "unknown_tokenizer", "normalizes"),
        ({"normalizer": number(5, 0)}, "unknown_tokenizer", "white space"),
        ({"trainer": number(24, 1)}, "unknown_tokenizer", "white space"),
        ({"n_bytes": 255}, "unknown_tokenizer", "<0xFF>"),
        ({"words": ("a", "a")}, "bad_tokenizer", "same text"),
        ({"words": ("a\0",)}, "bad_tokenizer", "NUL"),
        ({"words": ("",)}, "bad_tokenizer", "no text"),
        ({"tail": piece("q", float("nan"))}, "bad_tokenizer", "score"),
        ({"tail": piece("q", 0.0, 9)}, "bad_tokenizer", "type 9"),
        ({"tail": part(1, number(1, 5))}, "bad_tokenizer", "number where bytes"),
        ({"tail": part(1, part(1, b"\xff\xfe"))}, "bad_tokenizer", "decode"),
        ({"tail": varint(1 << 3 | 2) + varint(1 << 40)}, "bad_tokenizer", "past the end"),
        ({"tail": b"\x0b"}, "bad_tokenizer", "wire type 3"),
        ({"tail": b"\xff" * 11}, "bad_tokenizer", "ten bytes"),
        ({"tail": b"\x0a"}, "bad_tokenizer", ""),
    ],
)
def test_models_that_are_refused(
    changes: dict[str, Any], code: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm(**changes))
    error = refused(tmp_path)
    assert error.code == code
    assert words in str(error)


@pytest.mark.parametrize("limit", [50_000, pytest.param(MAX_TOKENS, marks=pytest.mark.slow)])
def test_ten_million_pieces(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit_quantize.sentencepiece.MAX_TOKENS", limit)
    (tmp_path / "tokenizer.model").write_bytes(part(1, part(1, b"\xc3\xa9")) * 10_000_000)
    started = time.monotonic()
    assert f"more than {limit}" in str(refused(tmp_path))
    assert time.monotonic() - started < 60


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_model(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever the bytes are: a table, or a typed error, at once."""
    raw = bytearray(spm())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        if action == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del raw[at + 1 :]
        elif action == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=12))
        else:
            del raw[at : at + data.draw(st.integers(1, 40))]
        if not raw:
            raw = bytearray(b"\n")
    (tmp_path / "tokenizer.model").write_bytes(raw)
    try:
        encode_header(read_tokenizer(tmp_path, {}, SPM_SIZE, "llama").metadata, [])
    except QuantizeError as error:
        assert error.code  # noqa: PT017


# tokenizer.json with byte fallback


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spm")
    model = vocabularies.sentencepiece_model(
        folder / "tokenizer.model", 3000, control=["[INST]"], user_defined=["[REF]"]
    )
    data = vocabularies.converted(model, scheme="legacy")
    return vocabularies.write_folder(folder, data, {"bos_token": "<s>"})


def edited(trained: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    change(data)
    write_json(folder / "tokenizer.json", data)
    return folder


def test_the_model_and_its_conversion_agree(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "tokenizer.json", tmp_path)
    both, alone = keys_of(trained, 3000), keys_of(tmp_path, 3000)
    for name in ("tokens", "token_type", "add_space_prefix", "model", "pre"):
        assert list(table(both)) == list(table(alone))
        assert both[f"tokenizer.ggml.{name}"] == alone[f"tokenizer.ggml.{name}"]
    assert both["tokenizer.ggml.scores"] != alone["tokenizer.ggml.scores"]


def test_a_model_and_a_conversion_of_another(trained: Path, tmp_path: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        vocab = data["model"]["vocab"]
        vocab["▁the"], vocab["▁a"] = vocab["▁a"], vocab["▁the"]

    shutil.copy(trained / "tokenizer.model", tmp_path)
    edited(trained, tmp_path, swap)
    assert "another" in str(refused(tmp_path, 3000))


def test_merges_that_are_not_all_joins_are_counted(trained: Path, tmp_path: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        del data["model"]["merges"][::7]

    edited(trained, tmp_path, drop)
    assert "are no merges" in read_tokenizer(tmp_path, {}, 3000, "llama").reason
    shutil.copy(trained / "tokenizer.json", tmp_path)
    assert "merges;" not in read_tokenizer(tmp_path, {}, 3000, "llama").reason


def set_in(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (set_in("normalizer", value={"type": "NFKC"}), "unknown_tokenizer"),
        (set_in("normalizer", value={"type": "Sequence", "normalizers": "x"}), "bad_tokenizer"),
        (set_in("pre_tokenizer", value={"type": "Metaspace", "split": True}), "unknown_tokenizer"),
        (set_in("pre_tokenizer", value=["x"]), "unknown_tokenizer"),
        (set_in("model", "vocab", "a", value=-1), "bad_tokenizer"),
        (set_in("model", "vocab", "a", value=1 << 40), "bad_tokenizer"),
        (set_in("model", "vocab", "a", value=2999), "bad_tokenizer"),
        (set_in("model", "vocab", "new", value=3000), "vocab_mismatch"),
        (set_in("model", "vocab", "new", value=True), "bad_tokenizer"),
        (set_in("model", "vocab", value=[]), "bad_tokenizer"),
        (set_in("model", "merges", 0, value=["a"]), "bad_tokenizer"),
        (set_in("model", "merges", 0, value=["a", 3]), "bad_tokenizer"),
        (set_in("model", "merges", value={}), "bad_tokenizer"),
        (set_in("model", "type", value="Unigram"), "unknown_tokenizer"),
        (set_in("added_tokens", 0, "id", value=5), "bad_tokenizer"),
        (set_in("added_tokens", 0, value=None), "bad_tokenizer"),
        (set_in("added_tokens", 0, "content", value=7), "bad_tokenizer"),
    ],
)
def test_conversions_that_are_refused(
    change: Callable[[dict[str, Any]], None], code: str, trained: Path, tmp_path: Path
) -> None:
    edited(trained, tmp_path, change)
    assert refused(tmp_path, 3000).code == code


# tekken.json


def tekken(
    folder: Path, *, n_control: int = 24, ranks: int = 300, **changes: Any
) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(
        vocabularies.tekken_file(folder / "tekken.json", ranks=ranks, control=n_control).read_text()
    )
    data.update(changes)
    write_json(folder / "tekken.json", data)
    return data


def test_old_files_leave_the_control_tokens_out(tmp_path: Path) -> None:
    tekken(tmp_path)
    keys = keys_of(tmp_path, 330)
    fillers = tuple((f"<SPECIAL_{i}>", CONTROL) for i in range(20, 24))
    assert table(keys)[:24] == [*((text, CONTROL) for text in OLD_CONTROL_TOKENS), *fillers]
    assert table(keys, 324) == [(f"[PAD{i}]", UNUSED) for i in range(324, 330)]
    ids = [keys[f"tokenizer.ggml.{n}_token_id"] for n in ("unknown", "bos", "eos", "padding")]
    assert ids == [0, 1, 2, 11]


def test_newer_files_name_them(tmp_path: Path) -> None:
    named = [{"rank": 1, "token_str": "<s>", "is_control": True}]
    named += [{"rank": 0, "token_str": "<unk>", "is_control": True}]
    named += [{"rank": 3, "token_str": "[THINK]", "is_control": True}]
    tekken(tmp_path, special_tokens=named)
    keys = keys_of(tmp_path, 324)
    texts = [text for text, _ in table(keys)[:5]]
    assert texts == ["<unk>", "<s>", "<SPECIAL_2>", "[THINK]", "<SPECIAL_4>"]
    assert "tokenizer.ggml.eos_token_id" not in keys


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_in("config", value=None), "config"),
        (set_in("config", "default_vocab_size", value=10**7), "tokens"),
        (set_in("config", "default_vocab_size", value=900), "fewer"),
        (set_in("config", "default_vocab_size", value=-1), "vocabulary of"),
        (set_in("config", "default_num_special_tokens", value=10), "beyond"),
        (set_in("config", "default_num_special_tokens", value=10**7), "tokens"),
        (set_in("config", "default_num_special_tokens", value="x"), "special"),
        (set_in("special_tokens", value=[{"rank": 0, "token_str": 4}]), "no text"),
        (set_in("special_tokens", value=[{"rank": -1, "token_str": "a"}]), "no rank"),
        (set_in("special_tokens", value=[{"rank": 1, "token_str": "a"}] * 2), "rank 1"),
        (set_in("special_tokens", value={}), "no list"),
        (set_in("vocab", value={}), "no list"),
        (set_in("vocab", 5, "rank", value=6), "another rank"),
        (set_in("vocab", 5, value="x"), "another rank"),
        (set_in("vocab", 5, "token_bytes", value="!!"), "no bytes"),
        (set_in("vocab", 5, "token_bytes", value=3), "no bytes"),
        (set_in("vocab", 299, "token_bytes", value="AAAA" * 999), "more than 1024"),
        (set_in("vocab", 5, "token_bytes", value="BA=="), "twice"),
        (set_in("vocab", 5, "token_bytes", value=base64.b64encode(b"zq").decode()), "256 bytes"),
        (set_in("vocab", 299, "token_bytes", value=base64.b64encode(b"zqzq").decode()), "not made"),
    ],
)
def test_tekken_files_that_are_refused(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    data = tekken(tmp_path)
    change(data)
    write_json(tmp_path / "tekken.json", data)
    error = refused(tmp_path, 324)
    assert error.code == "bad_tokenizer"
    assert words in str(error)


def test_a_tekken_with_another_pattern(tmp_path: Path) -> None:
    data = tekken(tmp_path)
    data["config"]["pattern"] = r"\w+"
    write_json(tmp_path / "tekken.json", data)
    assert refused(tmp_path, 324).code == "unknown_tokenizer"
    assert refused(tmp_path, 300).code == "unknown_tokenizer"
    tekken(tmp_path)
    assert refused(tmp_path, 323).code == "vocab_mismatch"


def test_mistrals_tokenizer_json_with_the_wrong_pattern(tmp_path: Path) -> None:
    """As in Mistral Small 3.1: tekken's vocabulary behind Llama 3's pattern. Transformers warns."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    from transformers.integrations.mistral.tokenizer import MistralConverter

    path = vocabularies.tekken_file(tmp_path / "tekken.json", ranks=4000, control=1000)
    MistralConverter(str(path)).converted().save(str(tmp_path / "tokenizer.json"))
    theirs = Tekkenizer.from_file(path)
    path.unlink()
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    right = read_tokenizer(tmp_path, {}, 5000, "llama")
    llama3 = next(known for known in KNOWN if known.pre == "llama-bpe")
    data["pre_tokenizer"] = vocabularies.pre_tokenizer(llama3.steps)
    write_json(tmp_path / "tokenizer.json", data)
    wrong = read_tokenizer(tmp_path, {}, 5000, "mistral3")
    assert wrong.metadata == right.metadata
    assert "by mistake" in wrong.reason
    assert "by mistake" not in right.reason
    gguf = tokenize_oracle.write_vocab_gguf(tmp_path / "v.gguf", wrong.metadata)
    texts = ["the eBay of pH 7.25", "123456 NaOH\n\n/ mL", "it's NOT HTTPServer's"]
    _, plain = tokenize_oracle.tokenize(gguf, texts)
    assert plain == [theirs.encode(text, bos=False, eos=False) for text in texts]
    # The same pattern behind any other vocabulary is Llama 3's.
    folder = vocabularies.byte_level(tmp_path / "o", llama3.steps, 600, ignore_merges=True)
    assert read_tokenizer(folder, {}, 600, "llama").pre == "llama-bpe"


def test_the_letters_are_gpt2s() -> None:
    assert byte_letters() == byte_alphabet()


# Which file is read


def model_of(folder: Path, size: int) -> tuple[Value, Value]:
    keys = keys_of(folder, size)
    return keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]


def test_which_file_is_read(tmp_path: Path) -> None:
    """Step by step, the files of a Mistral repository with everything in it."""
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes(spm(words=("▁", "x")))
    (tmp_path / "tokenizer.model.v1").write_bytes(spm(words=("▁", "y")))
    (tmp_path / "tokenizer.model.v3").write_bytes(spm(words=("▁", "z")))
    (tmp_path / "tokenizer.model.v3.bak").write_bytes(b"")
    assert table(keys_of(tmp_path, 261), 260) == [("z", NORMAL)]
    tekken(tmp_path)
    assert model_of(tmp_path, 324) == ("gpt2", "tekken")
    (tmp_path / "config.json").write_text("{}")
    assert table(keys_of(tmp_path, 261), 260) == [("x", NORMAL)]
    (tmp_path / "tokenizer.model").unlink()
    assert model_of(tmp_path, 324) == ("gpt2", "tekken")
    write_tokenizer(tmp_path, 600)
    assert table(keys_of(tmp_path, 600), 20)[0] == (byte_alphabet()[0], NORMAL)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert model_of(tmp_path, 600) == ("gpt2", "tekken")


def test_a_folder_of_tiktoken_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert refused(tmp_path).code == "bad_tokenizer"


def test_a_whole_model_with_sentencepiece(trained: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", vocab=3000, layers=1, hidden=64, ffn=64, head_dim=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    shutil.copy(trained / "tokenizer.model", folder)
    converted = convert(folder, tmp_path / "m.gguf", "Q8_0", threads=1)
    assert "SentencePiece" in " ".join(converted.reasons)
    job = {"do": "generate", "model": str(tmp_path / "m.gguf"), "prompt": "the text", "n": 4}
    answer = llama_oracle.call(job)
    assert answer["prompt"][0] == 1
    assert len(answer["output"]) == 4
    assert answer["metadata"]["tokenizer.ggml.model"] == "llama"


# Ends and templates


def test_the_list_of_end_ids_is_spread_over_the_keys(tmp_path: Path) -> None:
    """Llama 3: <|eot_id|> ends a turn and the text, <|eom_id|> a message."""
    write_tokenizer(tmp_path, 600)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    texts = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|odd|>")
    for i, text in enumerate(texts):
        data["added_tokens"].append({"id": 600 + i, "content": text, "special": True})
    write_json(tmp_path / "tokenizer.json", data)
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "<|eot_id|>"})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [600, 601, 602, 603, 1 << 40]})
    tokenizer = read_tokenizer(tmp_path, {}, 604, "llama")
    keys = {k.key: k.value for k in tokenizer.metadata}
    ids = [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert ids == [602, 600, 601]
    assert "603" in tokenizer.reason
    gguf = tokenize_oracle.write_vocab_gguf(tmp_path / "v.gguf", tokenizer.metadata)
    about = tokenize_oracle.describe(gguf)
    assert (about["eos"], about["eot"]) == (602, 600)
    # One id, or none: nothing to spread.
    for generation in ({"eos_token_id": 602}, {}, {"eos_token_id": "x"}):
        write_json(tmp_path / "generation_config.json", generation)
        assert "tokenizer.ggml.eot_token_id" not in keys_of(tmp_path, 604)


def test_a_plain_token_that_llama_cpp_takes_for_an_end(tmp_path: Path) -> None:
    """Qwen's vocabulary has an ordinary "</s>", the end of struck-out text in HTML."""
    write_tokenizer(tmp_path, 600)
    assert "ends a generation" not in read_tokenizer(tmp_path, {}, 600, "llama").reason
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "</s>"]
    data["added_tokens"].append({"id": 600, "content": "<|look|>", "special": False})
    write_json(tmp_path / "tokenizer.json", data)
    reason = read_tokenizer(tmp_path, {}, 601, "llama").reason
    assert "token 2 ('</s>') is plain text here; llama.cpp ends a generation at it" in reason
    assert "1 added tokens look like control tokens" in reason


def test_qwens_fill_in_the_middle_ids(tmp_path: Path) -> None:
    names = dict(zip(vocabularies.CHATML, range(600, 700), strict=False))
    write_tokenizer(tmp_path, 600)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"] = [
        {"id": i, "content": text, "special": text.startswith("<|im")} for text, i in names.items()
    ]
    write_json(tmp_path / "tokenizer.json", data)
    keys = keys_of(tmp_path, 609)
    wanted = {"pre": "prefix", "suf": "suffix", "mid": "middle", "pad": "pad"}
    for key, text in wanted.items():
        assert keys[f"tokenizer.ggml.fim_{key}_token_id"] == names[f"<|fim_{text}|>"]
    assert keys["tokenizer.ggml.fim_rep_token_id"] == names["<|repo_name|>"]
    assert keys["tokenizer.ggml.fim_sep_token_id"] == names["<|file_sep|>"]


def test_ids_inside_text_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 600)
    write_json(tmp_path / "tokenizer_config.json", {})
    keys = keys_of(tmp_path, 600, config={"text_config": {"bos_token_id": 1, "eos_token_id": [2]}})
    assert keys["tokenizer.ggml.bos_token_id"] == 1
    assert "tokenizer.ggml.eos_token_id" not in keys


def test_templates_in_files(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 600)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    (tmp_path / "chat_template.json").write_text('{"chat_template": "J"}')
    assert keys_of(tmp_path, 600)["tokenizer.chat_template"] == "J"
    (tmp_path / "chat_template.jinja").write_text("D")
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    assert keys_of(tmp_path, 600)["tokenizer.chat_template"] == "D"
    (more / "tool_use.jinja").write_text("T")
    (more / "rag.jinja").write_text("R")
    keys = keys_of(tmp_path, 600)
    assert keys["tokenizer.chat_template"] == "D"
    assert keys["tokenizer.chat_template.tool_use"] == "T"
    assert keys["tokenizer.chat_templates"] == ("rag", "tool_use")
    (more / "rag.jinja").write_bytes(b"\xff")
    assert refused(tmp_path, 600).code == "bad_tokenizer"


def test_no_template_in_a_native_folder_is_said(tmp_path: Path) -> None:
    tekken(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    assert "no chat template" in read_tokenizer(tmp_path, {}, 324, "llama").reason
    (tmp_path / "chat_template.jinja").write_text("D")
    assert "no chat template" not in read_tokenizer(tmp_path, {}, 324, "llama").reason


# Hostile JSON


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model": ' + "[" * 200_000, "JSON"),
        ('{"model": ' + "[" * 6_000_000, "items"),
        ('{"added_tokens": [' + "0," * 10_000_000 + "0]}", "items"),
        ('{"x": ' + "9" * 5000 + "}", "JSON"),
        ("[]", "no JSON object"),
        ("\ufeff{}", "JSON"),
        ('{"x": "' + "y" * (65 << 20) + '"}', "64 MiB"),
    ],
    ids=["deep", "very deep", "ten million", "huge number", "list", "mark", "large"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json"])
def test_hostile_json(text: str, words: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    started = time.monotonic()
    assert words in str(refused(tmp_path))
    assert time.monotonic() - started < 20


def test_more_tokens_than_any_vocabulary_has(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 600)
    for size in (MAX_TOKENS + 1, 0, -1):
        assert refused(tmp_path, size).code == "bad_tokenizer"


def test_texts_that_would_make_llama_cpp_abort(tmp_path: Path) -> None:
    """Two ids with one text, once read as C strings; a hole's name that a token already has."""
    write_tokenizer(tmp_path, 600)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    added = data["added_tokens"]
    added.append({"id": 600, "content": "[PAD602]", "special": False})
    added.append({"id": 601, "content": "", "special": False})
    write_json(tmp_path / "tokenizer.json", data)
    tokenizer = read_tokenizer(tmp_path, {}, 603, "llama")
    keys = {k.key: k.value for k in tokenizer.metadata}
    assert [text for text, _ in table(keys, 600)] == ["[PAD602]", "", "_[PAD602]"]
    gguf = tokenize_oracle.write_vocab_gguf(tmp_path / "v.gguf", tokenizer.metadata)
    assert tokenize_oracle.describe(gguf)["n_tokens"] == 603
    for text in ("a\0b", "[EMPTY_601]"):
        data["added_tokens"] = [*added, {"id": 602, "content": text, "special": False}]
        write_json(tmp_path / "tokenizer.json", data)
        assert refused(tmp_path, 603).code == "bad_tokenizer"
    data["added_tokens"] = [*added, {"id": 602, "content": "▁▁", "special": False}]
    data["added_tokens"] += [{"id": 603, "content": "  ", "special": False}]
    write_json(tmp_path / "tokenizer.json", data)
    assert "two ids" in str(refused(tmp_path, 604))


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def small_tekken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tekken(tmp_path_factory.mktemp("tekken"))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(["tekken.json", "tokenizer.json"]))
def test_any_part_may_be_anything(
    data: st.DataObject, kind: str, trained: Path, small_tekken: dict[str, Any], tmp_path: Path
) -> None:
    root: Any = small_tekken
    if kind == "tokenizer.json":
        root = json.loads((trained / kind).read_text(encoding="utf-8"))
    root = json.loads(json.dumps(root))
    node = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys[:40]))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(junk)
    for name in ("tekken.json", "tokenizer.json"):
        (tmp_path / name).unlink(missing_ok=True)
    write_json(tmp_path / kind, root)
    try:
        encode_header(read_tokenizer(tmp_path, {}, 3000, "llama").metadata, [])
    except QuantizeError as error:
        assert error.code  # noqa: PT017
