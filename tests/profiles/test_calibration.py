"""The texts that are shipped for calibration and evaluation."""

from __future__ import annotations

from edgekit import material


def test_one_text_has_nothing_of_the_other() -> None:
    one, other = material.calibration().read_text(), material.evaluation().read_text()
    size = 120
    parts = {one[i : i + size] for i in range(len(one) - size)}
    shared = [other[i : i + size] for i in range(len(other) - size) if other[i : i + size] in parts]
    assert shared == []


def test_texts_are_small_plain_and_of_many_scripts() -> None:
    for path in (material.calibration(), material.evaluation()):
        raw = path.read_bytes()
        text = raw.decode("utf-8")
        assert 50_000 < len(raw) < 300_000
        assert "\r" not in text
        for letter in "éßñłяيह的を지":
            assert letter in text, (path.name, letter)
        for word in ("def ", "func ", "pub fn", "#include", "SELECT", "const ", "class "):
            assert word in text, (path.name, word)


def test_canaries_are_two_dozen_different_questions() -> None:
    prompts = material.canary_prompts()
    assert len(prompts) == len(set(prompts)) == 24
    assert all(len(p) < 100 for p in prompts)
