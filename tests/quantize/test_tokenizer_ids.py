"""llama.cpp's ids from the vocabularies we write, against the Hugging Face fast tokenizer's.

Every kind of vocabulary, on texts of code, 25 scripts, emoji, control text and white space, with
markers in the text read as tokens and as plain text. Where the two differ, it is because of what
llama.cpp has compiled in; each such kind states llama.cpp's rule, the ids must equal the rule's
on every text, and may differ from tokenizer.json's only where `where` says:

- tekken, gpt-4o, llama4: letters outside ASCII have no case, and combining marks are no letters.
- deepseek-coder, deepseek-llm: white space outside ASCII is read as a plain space before the
  classes are matched, and so is not in `[\u0800-\u4e00]` or among the punctuation (U+3000).
- qwen2: text is not composed (NFC).
- Every pattern with `(?i:'s|...)`: a long s (U+017F) after an apostrophe ends no contraction.
- SentencePiece with `prepend_scheme` "first": a space is put before the text after each control
  token too, and before text that starts with a space.
- Gemma: a literal "▁" beside another, or beside a space, is no white space token.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer

from edgekit_quantize.pretokenizers import KNOWN, Known
from edgekit_quantize.tokenizer import read_tokenizer
from tests.support import tokenize_oracle, vocabularies
from tests.support.text_samples import samples

Edit = Callable[[dict[str, Any]], None]

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ASCII_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
TEKKEN_RULE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}|{_TAIL}"
)
O200K_RULE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{ASCII_CASE}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{ASCII_CASE}?|\p{{N}}{{1,3}}|{_TAIL}"
)
NFC = {"type": "NFC"}
EXTRA = ["\xa0 \u3000 \u3000! \u3000", "it'ſ b'ſa 'ſſ", "a\u202f🇦 \u2028é"]
"""Rare enough that 500 texts may miss them."""


@dataclass(frozen=True)
class Kind:
    """A vocabulary, how to make it with `size` tokens, and where llama.cpp has its own rule."""

    name: str
    make: Callable[[Path, int], Path]
    edit: Edit | None = None
    where: Callable[[str], bool] = field(default=lambda text: False)
    arch: str = "llama"
    noted: str = ""
    """Words of the note that says so to the user; none for the long s, which no text has."""

    def __str__(self) -> str:
        return self.name


def uncased_or_marked(text: str) -> bool:
    """A combining mark, or a letter outside ASCII that has case."""
    return any(
        unicodedata.category(char)[0] == "M"
        or (char > "\x7f" and unicodedata.category(char) in ("Lu", "Ll", "Lt"))
        for char in text
    )


def rule(*steps: str) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        data["pre_tokenizer"] = vocabularies.pre_tokenizer(steps)

    return edit


def special_tokens(pre: str) -> Sequence[str]:
    if pre == "tekken":
        return vocabularies.MISTRAL
    if pre == "llama-bpe":
        return vocabularies.LLAMA3
    return vocabularies.DEEPSEEK if pre.startswith("deepseek") else vocabularies.CHATML


def byte_level(known: Known, name: str) -> Kind:
    def make(folder: Path, size: int) -> Path:
        return vocabularies.byte_level(
            folder,
            known.steps,
            size,
            special=special_tokens(known.pre),
            ignore_merges=bool(known.ignore_merges) or known.pre == "tekken",
            normalizer=NFC if known.pre == "qwen2" else None,
        )

    edit, where, noted = llama_cpp_differs(known)
    return Kind(name, make, edit, where, known.arch or "llama", noted)


def llama_cpp_differs(known: Known) -> tuple[Edit | None, Callable[[str], bool], str]:
    """Return llama.cpp's own rule, which texts it may cut in another way, and the note's words."""
    if known.pre in ("tekken", "gpt-4o", "llama4"):
        own = TEKKEN_RULE if known.pre == "tekken" else O200K_RULE
        return rule(own), lambda t: uncased_or_marked(t) or "'ſ" in t, "combining marks"
    if known.pre in ("deepseek-llm", "deepseek-coder"):
        steps = [step.replace("\u3000-", "\u3001-") for step in known.steps]
        steps = [s.replace("\u0800-\u4e00", r"[\u0800-\u4e00&&[^\s]]") for s in steps]
        return rule(*steps), lambda t: re.search("[\u1680-\u3000]", t) is not None, "U+3000"
    steps = [step.replace(ANY_CASE, ASCII_CASE) for step in known.steps]
    if known.pre == "qwen2":

        def edit(data: dict[str, Any]) -> None:
            rule(*steps)(data)
            data["normalizer"] = None

        return edit, lambda t: not unicodedata.is_normalized("NFC", t) or "'ſ" in t, "NFC"
    if steps != list(known.steps):
        return rule(*steps), lambda t: "'ſ" in t, ""
    return None, lambda t: False, ""


def byte_level_kinds() -> list[Kind]:
    kinds: dict[str, Kind] = {}
    for known in KNOWN:
        name = known.pre if known.pre not in kinds else f"{known.pre}, pattern written out"
        kinds[name] = byte_level(known, name)
    return list(kinds.values())


def legacy(data: dict[str, Any]) -> None:
    """What llama.cpp does whatever tokenizer.json says: a space before each stretch of text."""
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    data["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    data["pre_tokenizer"] = None


def starts_with_space_or_has_marker(text: str) -> bool:
    markers = re.search(r"</?s>|<unk>|<pad>|\[/?[A-Z_]+\]|\[control_8\]", text)
    return text[:1] in (" ", "▁") or markers is not None


def spaces_for_bars(data: dict[str, Any]) -> None:
    """User-defined runs of "▁" are runs of spaces to llama.cpp, matched in the raw text."""
    runs = set(vocabularies.BAR_RUNS)
    model = data["model"]
    model["vocab"] = {t.replace("▁", " ") if t in runs else t: i for t, i in model["vocab"].items()}
    model["merges"] = [m for m in model["merges"] if not runs & {*m, "".join(m)}]
    for token in data["added_tokens"]:
        if token["content"] in runs:
            token["content"] = token["content"].replace("▁", " ")


def bars(text: str) -> bool:
    return re.search("▁[▁ ]| ▁", text) is not None


def sentencepiece(
    name: str, scheme: str, *, real: str | None = None, with_model: bool = True
) -> Kind:
    def make(folder: Path, size: int) -> Path:
        folder.mkdir(parents=True)
        model = folder / "tokenizer.model"
        if real:
            shutil.copy(vocabularies.mistral_data(real), model)
        elif scheme == "none":
            control = ["<start_of_turn>", "<end_of_turn>", "<mask>"]
            user_defined = [*vocabularies.BAR_RUNS, "\n\n", "\n\n\n", "\t\t", "<table>"]
            vocabularies.sentencepiece_model(
                model,
                size,
                control=control,
                user_defined=user_defined,
                dummy_prefix=False,
                gemma=True,
            )
        else:
            control = ["[INST]", "[/INST]", "<pad>"]
            vocabularies.sentencepiece_model(
                model, size, control=control, user_defined=["[REF]", "[/REF]"]
            )
        data = vocabularies.converted(model, scheme=scheme)
        vocabularies.write_folder(folder, data, {"bos_token": "<s>", "eos_token": "</s>"})
        if not with_model:
            model.unlink()
        return folder

    if scheme == "first":
        words = "after each control token"
        return Kind(name, make, legacy, starts_with_space_or_has_marker, noted=words)
    if scheme == "none":
        return Kind(name, make, spaces_for_bars, bars)
    return Kind(name, make)


def tekken(name: str, ranks: int | None, control: int | None) -> Kind:
    """Mistral's own file; its Hugging Face twin, made by transformers, is the reference."""

    def make(folder: Path, size: int) -> Path:
        from transformers.integrations.mistral.tokenizer import MistralConverter

        folder.mkdir(parents=True)
        path = vocabularies.tekken_file(folder / "tekken.json", ranks=ranks, control=control)
        (folder / "params.json").write_text("{}")
        MistralConverter(str(path)).converted().save(str(folder / "tokenizer.json"))
        return folder

    return Kind(name, make, rule(TEKKEN_RULE), uncased_or_marked, noted="combining marks")


BYTE_LEVEL = byte_level_kinds()
SMALL = [
    *(kind for kind in BYTE_LEVEL if "written out" not in kind.name and kind.name != "llama4"),
    tekken("tekken.json, 9,000 ranks", 9000, 40),
    sentencepiece("sentencepiece", "legacy"),
    sentencepiece("sentencepiece, tokenizer.json alone", "legacy", with_model=False),
    sentencepiece("sentencepiece, space before the first", "first"),
    sentencepiece("gemma", "none"),
    sentencepiece("gemma, tokenizer.json alone", "none", with_model=False),
]
V1, V3 = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"
V7 = "mistral_instruct_tokenizer_241114.model.v7"
LARGE = [
    *BYTE_LEVEL,
    tekken("tekken.json of Mistral Nemo", None, None),
    *SMALL[-5:],
    sentencepiece("Mistral 7B v0.1", "legacy", real=V1),
    sentencepiece("Mistral 7B v0.1, tokenizer.json alone", "legacy", real=V1, with_model=False),
    sentencepiece("Mistral v3", "legacy", real=V3),
    sentencepiece("Mistral v7", "first", real=V7),
    sentencepiece("Mistral v7, tokenizer.json alone", "first", real=V7, with_model=False),
]


def assert_same(kind: Kind, folder: Path, size: int, texts: Sequence[str]) -> int:
    """Compare ids on `texts`; return how many differ from tokenizer.json's, all allowed to."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    size = max(size, len(data["model"]["vocab"]))
    tokenizer = read_tokenizer(folder, {}, size, kind.arch)
    gguf = tokenize_oracle.write_vocab_gguf(folder / "vocab.gguf", tokenizer.metadata)
    reference = HfTokenizer.from_file(str(path))
    own_rule = reference
    if kind.edit:
        kind.edit(data)
        own_rule = HfTokenizer.from_str(json.dumps(data))
    n_differ = 0
    answers = tokenize_oracle.tokenize(gguf, texts)
    for special, theirs in zip((True, False), answers, strict=True):
        wanted = encode(reference, texts, special)
        by_rule = encode(own_rule, texts, special) if kind.edit else wanted
        for text, ids, rule_ids, hf_ids in zip(texts, theirs, by_rule, wanted, strict=True):
            assert ids == rule_ids, (special, text)
            if ids != hf_ids:
                assert kind.where(text), (special, text)
                n_differ += 1
    return n_differ


def encode(tokenizer: HfTokenizer, texts: Sequence[str], special: bool) -> list[list[int]]:
    tokenizer.encode_special_tokens = not special
    return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


@pytest.mark.parametrize("kind", SMALL, ids=str)
def test_ids_are_those_of_the_fast_tokenizer(kind: Kind, tmp_path: Path) -> None:
    folder = kind.make(tmp_path / "c", 3000)
    n_differ = assert_same(kind, folder, 3000, [*samples(500), *EXTRA])
    assert not kind.noted or n_differ > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE, ids=str)
def test_ids_on_five_thousand_texts(kind: Kind, tmp_path: Path) -> None:
    folder = kind.make(tmp_path / "c", 10_000)
    n_differ = assert_same(kind, folder, 10_000, [*samples(5000, seed=7), *EXTRA])
    print(f"{kind}: {n_differ} of 10,006 encodings differ, by llama.cpp's own rule")


def test_the_notes_name_what_differs(tmp_path: Path) -> None:
    """What the kinds above allow is said to the user, with the file it was read from."""
    for kind in BYTE_LEVEL:
        folder = kind.make(tmp_path / kind.name, 400)
        reason = read_tokenizer(folder, {}, 400, kind.arch).reason
        assert bool(kind.noted) == ("llama.cpp" in reason), reason
        assert kind.noted in reason


def test_scores_make_llama_cpp_cut_as_sentencepiece(tmp_path: Path) -> None:
    """The trained scores, against the library that trained them."""
    from sentencepiece import SentencePieceProcessor

    path = vocabularies.mistral_data(V1)
    shutil.copy(path, tmp_path / "tokenizer.model")
    tokenizer = read_tokenizer(tmp_path, {}, 32_000, "llama")
    gguf = tokenize_oracle.write_vocab_gguf(tmp_path / "v.gguf", tokenizer.metadata)
    texts = samples(500, seed=3)
    processor = SentencePieceProcessor(model_proto=path.read_bytes())
    _, plain = tokenize_oracle.tokenize(gguf, texts)
    for text, ids in zip(texts, plain, strict=True):
        assert ids == processor.encode(text), text


def test_tekken_and_its_twin_give_one_table(tmp_path: Path) -> None:
    """tekken.json, its Hugging Face conversion, and mistral-common's reading of it."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    kind = tekken("", 9000, 40)
    folder = kind.make(tmp_path / "native", 0)
    twin = tmp_path / "twin"
    twin.mkdir()
    (folder / "tokenizer.json").rename(twin / "tokenizer.json")
    native = {k.key: k.value for k in read_tokenizer(folder, {}, 9040, "llama").metadata}
    other = {k.key: k.value for k in read_tokenizer(twin, {}, 9040, "llama").metadata}
    # The twin says nothing of the ends: tokenizer_config.json would.
    ends = {"bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"}
    for name in ("add_bos_token", *ends):
        native.pop(f"tokenizer.ggml.{name}")
        other.pop(f"tokenizer.ggml.{name}", None)
    assert native == other
    theirs = Tekkenizer.from_file(folder / "tekken.json")
    tokens = native["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list | tuple)
    assert list(tokens[:40]) == [theirs.id_to_piece(i) for i in range(40)]
    texts = [text for text in samples(500, seed=5) if not uncased_or_marked(text)]
    tokenizer = read_tokenizer(folder, {}, 9040, "llama")
    gguf = tokenize_oracle.write_vocab_gguf(tmp_path / "v.gguf", tokenizer.metadata)
    _, plain = tokenize_oracle.tokenize(gguf, texts)
    assert plain == [theirs.encode(text, bos=False, eos=False) for text in texts]
    about = tokenize_oracle.describe(gguf)
    ids = (about["bos"], about["eos"], about["pad"], about["get_add_bos"], about["get_add_eos"])
    assert ids == (theirs.bos_id, theirs.eos_id, theirs.pad_id, 1, 0)
