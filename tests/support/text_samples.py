"""Texts to cut into tokens: code in six languages, 24 scripts, emoji, control text, white space.

`samples(n, seed)` is the same list on every machine. Texts hold no NUL, which C strings end at.
"""

# ruff: noqa: E501, SIM905
from __future__ import annotations

from random import Random

# fmt: off
WORDS: dict[str, str] = {
    "latin": "the quick Brown fox jumps over it's HTTPServer don't we'll I'm they've YOU'RE O'Neil",
    "accented": "garçon naïve Straße ÆØÅ żółć Ðurðr İstanbul Ĳssel ﬁn ǅungla œuvre Ünïcödé ŸES",
    "decomposed": "e\u0301te\u0301 nai\u0308ve A\u030angstro\u0308m o\u0328\u0304 s\u0323\u0307 z\u030cena",
    "greek": "ΑΘΗΝΑ καλημέρα κόσμε Σίσυφος ΐ ὀξεῖα Ωμέγα λόγος ΠΡΟΓΡΑΜΜΑ",
    "cyrillic": "Приве́т МИР ПриветМир ещё Київ їжак Ћирилица җ СССР прогрАмма",
    "armenian": "Բարև աշխարհ ՀԱՅԱՍՏԱՆ և գիրք",
    "georgian": "გამარჯობა მსოფლიო ᲗᲑᲘᲚᲘᲡᲘ კოდი",
    "hebrew": "שלום עולם שָׁלוֹם תִּקּוּן קוד ״ציטוט״",
    "arabic": "مرحبا بالعالم السَّلامُ عَلَيْكُم ١٢٣٤ برمجة لا إله ـــ پارسی گچ",
    "devanagari": "नमस्ते दुनिया हिन्दी क्षत्रिय १२३४५ क़लम प्रोग्राम श्रीमान्",
    "bengali": "নমস্কার বিশ্ব বাংলা ৪৫৬ ক্ষমা প্রোগ্রাম",
    "gujarati": "નમસ્તે વિશ્વ ગુજરાતી ૭૮૯",
    "tamil": "வணக்கம் உலகம் தமிழ் நிரல் ௧௨",
    "telugu": "నమస్కారం ప్రపంచం తెలుగు క్రమణిక",
    "sinhala": "ආයුබෝවන් ලෝකය ශ්‍රී ලංකාව",
    "thai": "สวัสดีชาวโลก ภาษาไทย น้ำ ๑๒๓ โปรแกรม",
    "lao": "ສະບາຍດີ ຊາວໂລກ ພາສາລາວ",
    "khmer": "សួស្តី​ពិភពលោក កាន់តែពិសេសអាច ខ្មែរ ១២",
    "myanmar": "မင်္ဂလာပါ ကမ္ဘာ မြန်မာ ၁၂၃",
    "tibetan": "བཀྲ་ཤིས་བདེ་ལེགས། འཛམ་གླིང་ ༡༢",
    "ethiopic": "ሰላም ዓለም አማርኛ ፩፪ ፡ ፕሮግራም።",
    "cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ꮳꮃꭹ",
    "hangul": "안녕하세요 세계 프로그램 ㄱㄴ 한국어의 한",
    "kana": "こんにちは 世界 プログラム ｶﾀｶﾅ ゔ ー ヽ々 がぎ",
    "han": "你好世界 程序 這是測試 1234年 我想在apple工作 𠮷野家 〇零 ㊗ 々",
}
SYMBOLS = (
    "!= === <- -> => :: ++ -- ** // /* */ # @ $x %d ^ & | ~ ` ' \" ( ) [ ] { } < > ; : , . ? "
    "… — – « » “ ” ‘ ’ ‹ › 。 、 ！ ？ ： （ ） ＋ ～ € £ ¥ ₹ ° § ¶ © ® ™ ± × ÷ ≠ ≤ ∑ √ ∞ "
    "½ ² ³ ① Ⅳ ⅷ ٣ ৩ 𝟘 ｱ → ⇒ ■ ☑ ♠ ─ │ ▁ ▁▁ ∀x∈ℝ 𝕏 ﷺ"
).split()
EMOJI = (
    "🚀 🦙🦙 😶‍🌫️ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷🇯🇵 1️⃣ ❤️ ✅ ☕ 👨🏿‍💻 🫠 🧑‍🤝‍🧑 ©️ ⌚ 😀😀😀 🏴󠁧󠁢󠁳󠁣󠁴󠁿"
).split()
CONTROL = (
    "<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CALLS]",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|fim_prefix|>", "<bos>",
    "<start_of_turn>", "<end_of_turn>", "<0x0A>", "<0x41>", "[PAD3]", "<|", "|>", "< s >", "<s",
    "[INST", "</s", "<unused1>", "<｜begin▁of▁sentence｜>", "<｜fim▁hole｜>", "<mask>", "[control_8]",
)
ODD = (
    "\u0301", "\u0300\u0301", "\ue000", "\uf8ff", "\U000f0000", "\u200b", "\u200d", "\ufeff", "\ufffd",
    "\u2028", "\u2029", "\u0085", "\u00a0", "\u3000", "\u2003", "\u202f", "\u1680", "\u180e", "\x01", "\x1b[0m", "\x7f",
    "\x0b", "\x0c", "\x1c", "\x1f", "\ufe0f", "\u034f", "\u0e31", "\u093f", "\u05b8", "\u064b", "\u20dd", "\u202e", "\u061c",
    "\u0378", "\U000e0041", "\ufdd0", "\uffff", "\U0010ffff", "\U0001f1e6", "\u0345", "\u03a3", "\u1e9e", "ſ", "K", "'ſ", "'K",
)
SPACES = (" ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n",
          "\r", " \n", "\n ", "\t \t", " \t\n  ", "                ", "                     ", "\xa0", " \xa0 ")
CODE = (
    "def {a}({b}: int = {n}) -> str:\n    \"\"\"{w}\"\"\"\n    return f\"{{{b}!r}} {w}\"  # {w}\n\n\n",
    "    for {a}, {b} in enumerate(self.{a}[{n}:-1]):\n        if not {b}:\n            continue\n",
    "#include <{a}.h>\n\nint main(int argc, char **argv) {{\n\tprintf(\"%d {w}\\n\", {n});\n\treturn 0x{n}u;\n}}\n",
    "const {a} = async ({b}) => {{\r\n  await fetch(`/api/${{{b}}}?q={n}`);\r\n  // {w}\r\n}};\r\n",
    "pub fn {a}<'a>({b}: &'a str) -> Option<{b}> {{\n    let x = {n}_u64 << 3; /* {w} */\n    None?\n}}\n",
    "SELECT {a}.{b}, COUNT(*) AS n_{n} FROM \"{a}\" WHERE {b} LIKE '%{w}%' GROUP BY 1;\n",
    "public static <T extends {a}> void {b}(T[] xs) throws Exception {{ System.out.println({n}L); }} // {w}\n",
    "<div class=\"{a} {b}\" style=\"width:{n}px\">{w}&nbsp;</div>\n<!-- {w} -->\n",
    "{{\"{a}\": [{n}, -1.5e-3, null, \"{w}\"], \"{b}\": {{}}}}\n",
    "- {a}: {b}\n  * **{w}** [{a}](https://{b}.example/{n})\n```{a}\n```\n| {a} | {n} |\n|---|---|\n",
)
NAMES = ("x", "i", "userName", "HTTPResponse", "parse_json", "MAX_SIZE", "foo2bar", "__init__", "café", "данные", "naïveΣ")
# fmt: on

_NUMBERS = (
    "0",
    "7",
    "42",
    "007",
    "1234",
    "3.14159",
    "1,000,000",
    "99999999",
    "1e10",
    "0xFF",
    "１２",
    "2¹⁰",
)
_RANGES = (
    (0x21, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x600, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE5B), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x20BF),
    (0x2100, 0x21FF), (0x2460, 0x24FF), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF),
    (0xFF00, 0xFFEF), (0x1D400, 0x1D4FF), (0x1F300, 0x1F64F),
)  # fmt: skip


def samples(n: int, seed: int = 1) -> list[str]:
    """Return `n` texts of 1 to about 400 characters, the kinds in turn."""
    rng = Random(seed)
    makers = (_code, _script, _emoji, _control, _spaces, _odd, _script, _code, _mixed, _random)
    return [makers[i % len(makers)](rng) for i in range(n)]


def _code(rng: Random) -> str:
    text = ""
    for _ in range(rng.randint(1, 3)):
        names = rng.sample(NAMES, 2)
        text += rng.choice(CODE).format(
            a=names[0], b=names[1], n=rng.choice(_NUMBERS), w=_sentence(rng, 3)
        )
    return text


def _script(rng: Random) -> str:
    return _sentence(rng, rng.randint(1, 25), rng.choice(list(WORDS)))


def _sentence(rng: Random, n: int, script: str | None = None) -> str:
    words = []
    for _ in range(n):
        words.append(rng.choice(WORDS[script or rng.choice(list(WORDS))].split()))
        if rng.random() < 0.15:
            words.append(rng.choice(SYMBOLS if rng.random() < 0.5 else _NUMBERS))
    glue = "" if rng.random() < 0.1 else " "
    return glue.join(words)


def _emoji(rng: Random) -> str:
    parts = [rng.choice([*EMOJI, _sentence(rng, 1)]) for _ in range(rng.randint(1, 12))]
    return rng.choice(("", " ")).join(parts)


def _control(rng: Random) -> str:
    text = ""
    for _ in range(rng.randint(1, 8)):
        text += rng.choice(CONTROL) + rng.choice(("", "", " ", "\n", "x", "  "))
        if rng.random() < 0.5:
            text += _sentence(rng, 2)
    return text


def _spaces(rng: Random) -> str:
    return "".join(
        rng.choice(SPACES) * rng.choice((1, 1, 1, 2, 3))
        + rng.choice(("", "", "a", "3", ".", "é", "वि", "}"))
        for _ in range(rng.randint(1, 10))
    )


def _odd(rng: Random) -> str:
    return "".join(
        rng.choice(ODD) + rng.choice(("", " ", "a", "B", "5", "-", "\n"))
        for _ in range(rng.randint(1, 12))
    )


def _mixed(rng: Random) -> str:
    makers = (_code, _script, _emoji, _control, _spaces, _odd)
    return "".join(rng.choice(makers)(rng)[:80] for _ in range(rng.randint(2, 5)))


def _random(rng: Random) -> str:
    low, high = rng.choice(_RANGES)
    return "".join(
        chr(rng.randint(low, high)) if rng.random() < 0.85 else rng.choice((" ", "\n", "1", "x"))
        for _ in range(rng.randint(1, 60))
    )
