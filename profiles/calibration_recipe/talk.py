"""Sentences of many languages, and small programs of many, put together from parts.

All of it was written for this file and is free to use. A drawn sentence is grammatical and
means little: what counts is that a model sees each script and each language's common words.
"""

from __future__ import annotations

import random

# Frames of each language, and what may stand at {a} (things) and {b} (places, times). The last
# frame is the evaluation's, the others are the calibration's.
LANGUAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        ("Could you explain how {a} works, and why it matters {b}?",
         "I have been looking at {a} {b}, but the figures do not add up.",
         "First we measure {a}, then we compare it with what was promised {b}.",
         "The short answer is no: {a} was never meant to be used {b}.",
         "Please write a summary of {a} for people who were not there {b}.",
         "If {a} fails {b}, restart the service and read the last lines of the log."),
        ("the memory budget", "the new schedule", "a slow disk", "the second engine", "this garden",
         "the old bridge", "a quiet fan", "the invoice", "the train to the coast", "her recipe"),
        ("on Monday morning", "in the smaller room", "after the last update", "near the river",
         "before the end of the year", "in a cold winter", "at the other office"),
    ),
    "de": (
        ("Kannst du mir erklären, wie {a} funktioniert und was {b} anders war?",
         "Wir haben {a} {b} geprüft; die Zahlen stimmen noch nicht überein.",
         "Ohne {a} wäre das Ergebnis {b} deutlich schlechter ausgefallen.",
         "Außerdem heißt es, dass {a} {b} mäßig läuft; wir müssen genauer hinsehen.",
         "Bitte fasse kurz zusammen, was {b} über {a} gesagt wurde.",
         "Zuerst messen wir {a}, danach, was {b} versprochen war, und schließen daraus auf den Rest."),
        ("der neue Zeitplan", "die alte Brücke", "das Steuergerät", "der langsame Speicher",
         "die Rechnung", "das zweite Gerät", "der Garten hinter dem Haus"),
        ("am Montagmorgen", "im kleineren Zimmer", "nach der letzten Änderung", "am Fluss",
         "vor dem Jahresende", "während der Prüfung"),
    ),
    "fr": (
        ("Pouvez-vous expliquer comment fonctionne {a} et pourquoi c'est important {b} ?",
         "Nous avons vérifié {a} {b}, mais les chiffres ne concordent pas encore.",
         "Il suffit de mesurer {a} {b}, puis de comparer avec ce qui était prévu.",
         "Écris un court résumé de {a} pour ceux qui n'étaient pas là {b}."),
        ("le nouveau calendrier", "le vieux pont", "la mémoire partagée", "le disque lent",
         "la facture", "le jardin", "l'horaire du train"),
        ("lundi matin", "dans la petite salle", "après la mise à jour", "près de la rivière",
         "avant la fin de l'année"),
    ),
    "es": (
        ("¿Puedes explicar cómo funciona {a} y por qué importa {b}?",
         "Hemos revisado {a} {b}, pero las cifras todavía no coinciden.",
         "Primero medimos {a}; luego lo comparamos con lo que se prometió {b}.",
         "Escribe un resumen breve de {a} para quienes no estuvieron {b}."),
        ("el nuevo horario", "el puente viejo", "la memoria compartida", "la factura",
         "el jardín", "el segundo motor"),
        ("el lunes por la mañana", "en la sala pequeña", "después del cambio", "cerca del río",
         "antes de fin de año"),
    ),
    "it": (
        ("Puoi spiegare come funziona {a} e perché conta {b}?",
         "Abbiamo controllato {a} {b}, ma i numeri non tornano ancora.",
         "Prima misuriamo {a}, poi lo confrontiamo con ciò che era previsto {b}."),
        ("il nuovo orario", "il vecchio ponte", "la memoria", "la fattura", "il giardino"),
        ("lunedì mattina", "nella stanza piccola", "dopo l'aggiornamento", "vicino al fiume"),
    ),
    "pt": (
        ("Você pode explicar como funciona {a} e por que isso importa {b}?",
         "Verificamos {a} {b}, mas os números ainda não batem.",
         "Escreva um resumo curto sobre {a} para quem não estava {b}."),
        ("o novo horário", "a ponte velha", "a memória", "a fatura", "o jardim"),
        ("na segunda-feira de manhã", "na sala pequena", "depois da mudança", "perto do rio"),
    ),
    "nl": (
        ("Kun je uitleggen hoe {a} werkt en waarom dat {b} belangrijk is?",
         "We hebben {a} {b} nagekeken, maar de cijfers kloppen nog niet.",
         "Schrijf een korte samenvatting van {a} voor wie er {b} niet bij was."),
        ("het nieuwe rooster", "de oude brug", "het geheugen", "de rekening", "de tuin"),
        ("op maandagochtend", "in de kleine kamer", "na de wijziging", "bij de rivier"),
    ),
    "pl": (
        ("Czy możesz wyjaśnić, jak działa {a} i dlaczego {b} ma to znaczenie?",
         "Sprawdziliśmy, czym jest {a}, ale {b} liczby nadal się nie zgadzają."),
        ("nowy harmonogram", "stary most", "wspólna pamięć", "faktura", "ogród"),
        ("w poniedziałek rano", "w małym pokoju", "po zmianie", "nad rzeką"),
    ),
    "ru": (
        ("Объясни, пожалуйста, как работает {a} и почему это важно {b}.",
         "Мы проверили, что такое {a}, но {b} цифры пока не сходятся.",
         "Сначала измеряется {a}, затем результат сравнивают с тем, что обещали {b}."),
        ("новое расписание", "старый мост", "общая память", "медленный диск", "сад"),
        ("в понедельник утром", "в маленькой комнате", "после обновления", "у реки"),
    ),
    "zh": (
        ("请解释{a}是怎么工作的，以及为什么{b}很重要。",
         "我们{b}检查了{a}，但是数字还对不上。",
         "先测量{a}，然后和{b}承诺的结果比较。",
         "请为{b}不在场的人写一份关于{a}的简短总结。"),
        ("新的时间表", "旧桥", "共享内存", "慢速磁盘", "发票", "花园", "第二台发动机"),
        ("星期一早上", "在小房间里", "更新之后", "在河边", "年底之前"),
    ),
    "ja": (
        ("{b}、{a}がどのように動くのか、なぜ大切なのかを説明してください。",
         "{b}、{a}を確認しましたが、数字がまだ合いません。",
         "まず{a}を測り、次に{b}約束された値と比べます。"),
        ("新しい予定", "古い橋", "共有メモリ", "遅いディスク", "請求書", "庭"),
        ("月曜日の朝", "小さい部屋で", "更新の後で", "川の近くで"),
    ),
    "ko": (
        ("{b} 왜 중요한지, {a}의 작동 방식을 설명해 주세요.",
         "{b} {a} 상태를 확인했지만 숫자가 아직 맞지 않습니다."),
        ("새 일정", "오래된 다리", "공유 메모리", "느린 디스크", "정원"),
        ("월요일 아침에", "작은 방에서", "변경 후에", "강 근처에서"),
    ),
    "ar": (
        ("هل يمكنك أن تشرح كيف يعمل {a} ولماذا هو مهم {b}؟",
         "لقد فحصنا {a} {b}، لكن الأرقام لا تتطابق بعد."),
        ("الجدول الجديد", "الجسر القديم", "القرص البطيء", "البستان"),
        ("صباح يوم الاثنين", "في الغرفة الصغيرة", "بعد التحديث", "قرب النهر"),
    ),
    "hi": (
        ("कृपया समझाइए कि {a} कैसे काम करता है और {b} यह क्यों ज़रूरी है।",
         "हमने {b} {a} की जाँच की, पर आँकड़े अभी मेल नहीं खाते।"),
        ("नया कार्यक्रम", "पुराना पुल", "धीमा डिस्क", "बगीचा"),
        ("सोमवार की सुबह", "छोटे कमरे में", "बदलाव के बाद", "नदी के पास"),
    ),
}  # fmt: skip

NOUNS = (
    "order", "node", "packet", "sensor", "ticket", "frame", "record", "bucket", "cursor", "session",
    "vector", "shard", "route", "lease", "token", "metric", "signal", "ledger", "parcel", "window",
)  # fmt: skip
VERBS = (
    "merge", "filter", "encode", "resolve", "collect",
    "rotate", "validate", "flush", "schedule", "compress",
)  # fmt: skip

# Two programs of each language, for calibration and for evaluation; {n} is a noun, {v} a verb,
# {N} and {V} the same with a capital, {k} a number.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "c": (
        "#include <stddef.h>\n#include <stdint.h>\n\nstruct {n} {{\n    uint32_t id;\n"
        "    size_t size;\n    struct {n} *next;\n}};\n\n"
        "static size_t {v}_{n}s(struct {n} *head, size_t limit) {{\n    size_t total = 0;\n"
        "    for (struct {n} *p = head; p != NULL && total < limit; p = p->next) {{\n"
        "        if (p->size % {k} == 0) {{\n            total += p->size;\n        }}\n    }}\n"
        "    return total;\n}}\n",
        "#include <stdio.h>\n#include <string.h>\n\n#define MAX_{N} {k}4\n\n"
        "int {v}(const char *{n}, char *out) {{\n    int n = 0;\n"
        "    while (*{n} != '\\0' && n < MAX_{N} - 1) {{\n        if (*{n} != ' ')\n"
        "            out[n++] = *{n};\n        {n}++;\n    }}\n    out[n] = '\\0';\n"
        "    printf(\"%s: %d\\n\", out, n);\n    return n;\n}}\n",
    ),
    "cpp": (
        "#include <algorithm>\n#include <vector>\n\ntemplate <typename T>\n"
        "std::vector<T> {v}(std::vector<T> {n}s, const T &limit) {{\n"
        "    {n}s.erase(std::remove_if({n}s.begin(), {n}s.end(),\n"
        "                   [&](const T &x) {{ return x > limit; }}), {n}s.end());\n"
        "    std::sort({n}s.begin(), {n}s.end());\n    return {n}s;\n}}\n",
        "#include <memory>\n#include <string>\n\nclass {N} {{\n public:\n"
        "  explicit {N}(std::string name) : name_(std::move(name)) {{}}\n"
        "  virtual ~{N}() = default;\n  const std::string &name() const {{ return name_; }}\n"
        "  virtual int {v}(int by) {{ return count_ += by * {k}; }}\n\n private:\n"
        "  std::string name_;\n  int count_ = 0;\n}};\n\nauto made = std::make_unique<{N}>(\"{n}\");\n",
    ),
    "go": (
        "package {n}\n\nimport (\n\t\"errors\"\n\t\"sync\"\n)\n\n"
        "var ErrClosed = errors.New(\"{n} is closed\")\n\n"
        "type {N}Pool struct {{\n\tmu    sync.Mutex\n\titems map[string]int\n}}\n\n"
        "func (p *{N}Pool) {V}(name string) (int, error) {{\n\tp.mu.Lock()\n\tdefer p.mu.Unlock()\n"
        "\tif p.items == nil {{\n\t\treturn 0, ErrClosed\n\t}}\n\tp.items[name] += {k}\n"
        "\treturn p.items[name], nil\n}}\n",
        "package main\n\nimport \"fmt\"\n\ntype {n} struct {{\n\tname string\n\tsize int\n}}\n\n"
        "func {v}(in <-chan {n}, out chan<- int) {{\n\tfor x := range in {{\n"
        "\t\tif x.size > {k} {{\n\t\t\tout <- x.size\n\t\t}}\n\t}}\n\tclose(out)\n}}\n\n"
        "func main() {{\n\tfmt.Println(\"{v} {n}\", {k})\n}}\n",
    ),
    "rust": (
        "use std::collections::HashMap;\n\n#[derive(Debug, Clone, PartialEq)]\n"
        "pub struct {N} {{\n    pub id: u64,\n    pub label: Option<String>,\n}}\n\n"
        "pub fn {v}_{n}s(input: &[{N}]) -> HashMap<u64, &{N}> {{\n"
        "    input\n        .iter()\n        .filter(|x| x.id % {k} != 0)\n"
        "        .map(|x| (x.id, x))\n        .collect()\n}}\n",
        "use std::fmt;\n\npub enum {N}Error {{\n    Empty,\n    TooLong(usize),\n}}\n\n"
        "impl fmt::Display for {N}Error {{\n"
        "    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {{\n        match self {{\n"
        "            Self::Empty => write!(f, \"the {n} is empty\"),\n"
        "            Self::TooLong(n) => write!(f, \"{{n}} of at most {k}\"),\n        }}\n    }}\n}}\n\n"
        "pub fn {v}(text: &str) -> Result<&str, {N}Error> {{\n    match text.len() {{\n"
        "        0 => Err({N}Error::Empty),\n        n if n > {k} => Err({N}Error::TooLong(n)),\n"
        "        _ => Ok(text.trim()),\n    }}\n}}\n",
    ),
    "java": (
        "public final class {N}Service {{\n"
        "    private final Map<String, {N}> known = new HashMap<>();\n\n"
        "    public Optional<{N}> {v}(String name) {{\n"
        "        if (name == null || name.isBlank()) {{\n"
        "            throw new IllegalArgumentException(\"name is missing\");\n        }}\n"
        "        return Optional.ofNullable(known.get(name.trim()));\n    }}\n}}\n",
        "import java.util.List;\nimport java.util.stream.Collectors;\n\n"
        "public record {N}(long id, String label, int weight) {{\n"
        "    public static List<String> {v}(List<{N}> all) {{\n        return all.stream()\n"
        "            .filter(x -> x.weight() > {k})\n            .map({N}::label)\n"
        "            .sorted()\n            .collect(Collectors.toList());\n    }}\n}}\n",
    ),
    "typescript": (
        "export interface {N} {{\n  id: number;\n  tags: string[];\n  updatedAt?: Date;\n}}\n\n"
        "export async function {v}{N}s(url: string, limit = {k}): Promise<{N}[]> {{\n"
        "  const response = await fetch(`${{url}}/{n}s?limit=${{limit}}`);\n"
        "  if (!response.ok) {{\n    throw new Error(`HTTP ${{response.status}}`);\n  }}\n"
        "  return (await response.json()) as {N}[];\n}}\n",
        "type {N}State = \"idle\" | \"busy\" | \"done\";\n\nexport class {N}Queue<T> {{\n"
        "  private waiting: T[] = [];\n  state: {N}State = \"idle\";\n\n"
        "  {v}(item: T): number {{\n    this.waiting.push(item);\n"
        "    this.state = this.waiting.length > {k} ? \"busy\" : \"idle\";\n"
        "    return this.waiting.length;\n  }}\n}}\n",
    ),
    "sql": (
        "CREATE TABLE {n}s (\n    id INTEGER PRIMARY KEY,\n    name TEXT NOT NULL,\n"
        "    amount NUMERIC DEFAULT {k},\n    created_at TIMESTAMP\n);\n\n"
        "SELECT name, COUNT(*) AS n, SUM(amount) AS total\nFROM {n}s\n"
        "WHERE created_at >= '2025-01-{k:02d}'\nGROUP BY name\nHAVING SUM(amount) > {k}00\n"
        "ORDER BY total DESC\nLIMIT {k};\n",
        "UPDATE {n}s AS x\nSET state = 'done', tries = tries + 1\nFROM owners AS o\n"
        "WHERE x.owner_id = o.id AND o.active AND x.tries < {k};\n\n"
        "CREATE INDEX {n}s_by_owner ON {n}s (owner_id, state);\n\n"
        "INSERT INTO {n}s (name, owner_id) VALUES ('{v}', {k}), ('{n}', NULL);\n"
        "SELECT * FROM {n}s LEFT JOIN owners USING (owner_id);\n",
    ),
    "sh": (
        "#!/bin/sh\nset -eu\n\nfor file in /var/log/{n}s/*.log; do\n"
        "    [ -f \"$file\" ] || continue\n    lines=$(wc -l < \"$file\")\n"
        "    if [ \"$lines\" -gt {k}000 ]; then\n        gzip -9 \"$file\"\n"
        "        echo \"{v}: $file ($lines lines)\"\n    fi\ndone\n",
        "#!/usr/bin/env bash\n{v}() {{\n  local name=\"$1\" tries=\"${{2:-{k}}}\"\n"
        "  until curl -fsS \"http://localhost:80{k}0/{n}/$name\" >/dev/null; do\n"
        "    tries=$((tries - 1))\n    if [[ $tries -le 0 ]]; then return 1; fi\n    sleep {k}\n"
        "  done\n}}\n\nfor n in one two three; do {v} \"$n\" || exit 1; done\n",
    ),
    "json": (
        "{{\n  \"{n}\": {{\n    \"id\": {k}01,\n    \"labels\": [\"{v}\", \"{n}-{k}\"],\n"
        "    \"limits\": {{\"memory_bytes\": {k}048576, \"retries\": {k}, \"strict\": true}},\n"
        "    \"parent\": null\n  }}\n}}\n",
        "[\n  {{\"name\": \"{n}\", \"at\": \"2026-01-0{k}T08:00:00Z\", \"values\": [{k}, {k}.5, -1e-{k}]}},\n"
        "  {{\"name\": \"{v}\", \"at\": null, \"values\": [], \"nested\": {{\"deep\": {{\"er\": false}}}}}}\n]\n",
    ),
}  # fmt: skip


def sentences(r: random.Random, language: str, count: int, *, held_out: bool) -> str:
    """Return sentences of one language in a row."""
    frames, things, places = LANGUAGES[language]
    frames = frames[-1:] if held_out else frames[:-1]
    space = "" if language in ("zh", "ja") else " "
    return space.join(
        r.choice(frames).format(a=r.choice(things), b=r.choice(places)) for _ in range(count)
    )


def program(r: random.Random, language: str, *, held_out: bool) -> str:
    """Return a small program of one language."""
    noun, verb = r.choice(NOUNS), r.choice(VERBS)
    return PROGRAMS[language][held_out].format(
        n=noun, v=verb, N=noun.capitalize(), V=verb.capitalize(), k=r.randint(2, 9)
    )
