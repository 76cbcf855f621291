"""A small closed world of tools: what they are called, what they answer, and tasks that need them.

Everything here is invented by this file, seeded, and free to use. A task is a user's sentence and
the exact calls that solve it; every tool's answer is part of the task, so a conversation can be
written down whole or played step by step against a model.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

CITIES = """Paris Berlin Oslo Rome Madrid Lisbon Vienna Prague Dublin Athens Cairo Delhi Tokyo Seoul Lima
Quito Bogota Havana Dakar Tunis Rabat Accra Lagos Nairobi Kigali Riga Tallinn Vilnius Warsaw Sofia Zagreb
Belgrade Bern Geneva Lyon Nice Turin Milan Naples Porto Seville Valencia Munich Hamburg Dresden Graz Basel
Ghent Bruges Utrecht Leiden Bergen Malmo Turku Cork Leeds York Bath Boston Denver Austin Dallas""".split()
PEOPLE = """Ada Alan Grace Linus Dennis Ken Barbara Donald Edsger Frances Guido Hedy Ivan John Katherine Leslie
Margaret Niklaus Olga Peter Radia Shafi Tony Ursula Vint Whitfield Yukihiro Zhenya Anita Bjarne Carol Dana
Elena Farid Gita Hana Ines Jonas Kamala Lena Marco Nadia Omar Petra Ravi Sofia Tariq Uma Viktor Wanda""".split()
STEMS = """config server client model token cache index report probe planner engine router worker parser schema
writer reader loader sampler batch memory device driver bundle store fetch quant shape units errors tables
kernel buffer socket header footer layout metric budget weight sensor camera signal motor valve boiler invoice
order customer product basket payment refund ticket agenda minutes summary draft notes budget letter recipe
garden harvest bridge tunnel harbor island desert forest meadow river canyon glacier volcano comet planet""".split()
SUFFIXES = "py txt md json toml yaml csv log ini sh".split()
FOLDERS = "src docs data logs tests tools build home etc share assets notes backup archive reports".split()
SERVICES = """nginx redis postgres grafana prometheus sshd cron rsyslog docker chronyd named postfix dovecot
haproxy memcached rabbitmq kafka minio vault consul nomad etcd loki tempo jaeger""".split()
ITEMS = """lamp chair desk table shelf mirror carpet clock kettle toaster blender pan knife fork spoon plate
bowl cup glass bottle towel pillow blanket candle vase basket hammer wrench saw drill ladder bucket rope
tent stove lantern backpack compass map boots gloves scarf hat coat umbrella bicycle helmet pump""".split()
CURRENCIES = "USD EUR GBP JPY CHF SEK NOK DKK PLN CZK CAD AUD".split()
SKIES = "clear cloudy rainy windy foggy snowy sunny stormy".split()
WORDS = """green red blue quiet loud early late small large first second third north south east west open closed
ready done waiting fast slow warm cold bright dark fresh plain simple""".split()

Call = tuple[str, dict[str, object]]
Step = tuple[Call, str]


def _tool(name: str, description: str, /, **parameters: str) -> dict[str, object]:
    properties = {
        k: {"type": "number" if v == "number" else "string", "description": v if v != "number" else k}
        for k, v in parameters.items()
    }
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": list(parameters)},
        },
    }


TOOLS: dict[str, dict[str, object]] = {
    t["function"]["name"]: t  # type: ignore[index]
    for t in [
        _tool("get_weather", "Current weather in a city", city="city name"),
        _tool("get_time", "Local time in a city", city="city name"),
        _tool("find_file", "Find a file by name and return its path", name="file name"),
        _tool("read_file", "Return the text of a file", path="path of the file"),
        _tool("write_file", "Write text to a file", path="path of the file", text="text to write"),
        _tool("count_lines", "Count the lines of a file", path="path of the file"),
        _tool("list_files", "List the files in a folder", folder="path of the folder"),
        _tool("lookup_user", "Return a person's e-mail address", name="first name"),
        _tool("send_message", "Send a text message", to="name or address", text="text to send"),
        _tool("add", "Add two numbers", a="number", b="number"),
        _tool("multiply", "Multiply two numbers", a="number", b="number"),
        _tool("get_price", "Price of an item in USD", item="item name"),
        _tool("convert_currency", "Convert an amount of USD", amount="number", currency="target currency"),
        _tool("service_status", "State of a service", service="service name"),
        _tool("restart_service", "Restart a service", service="service name"),
    ]
}


@dataclass(frozen=True, slots=True)
class Task:
    """A user's request, the calls with their results in order, and the final answer."""

    user: str
    steps: tuple[Step, ...]
    answer: str
    kind: str

    @property
    def held_out(self) -> bool:
        """One request text in twenty is kept for evaluation and never trained on."""
        return hashlib.sha256(self.user.encode()).digest()[0] < 13


def _file(r: random.Random) -> str:
    stem = r.choice(STEMS)
    if r.random() < 0.5:
        stem += "_" + r.choice(STEMS)
    elif r.random() < 0.3:
        stem += str(r.randint(1, 99))
    return f"{stem}.{r.choice(SUFFIXES)}"


def _path(r: random.Random, name: str | None = None) -> str:
    folders = [r.choice(FOLDERS) for _ in range(r.randint(1, 2))]
    return "/" + "/".join([*folders, name or _file(r)])


def _number(r: random.Random) -> int:
    return r.randint(1, 10 ** r.randint(1, 4) - 1)


def _text(r: random.Random) -> str:
    return " ".join(r.choice(WORDS) for _ in range(r.randint(1, 3)))


def _weather(r: random.Random) -> Task:
    city, degrees, sky = r.choice(CITIES), r.randint(-15, 38), r.choice(SKIES)
    user = r.choice(
        ["What is the weather in {}?", "How is the weather in {} today?", "Tell me the weather in {}.",
         "Weather in {}?", "Is it cold in {} now?", "Check the weather in {}, please."]
    ).format(city)
    result = json.dumps({"degrees": degrees, "sky": sky})
    return Task(user, ((("get_weather", {"city": city}), result),), f"It is {degrees} degrees and {sky} in {city}.", "weather")


def _time(r: random.Random) -> Task:
    city, t = r.choice(CITIES), f"{r.randint(0, 23):02}:{r.randint(0, 59):02}"
    user = r.choice(["What time is it in {}?", "Tell me the time in {}.", "Local time in {}?", "How late is it in {}?"]).format(city)
    return Task(user, ((("get_time", {"city": city}), t),), f"It is {t} in {city}.", "time")


def _find(r: random.Random) -> Task:
    name = _file(r)
    path = _path(r, name)
    user = r.choice(["Where is {}?", "Find the file {}.", "What is the path of {}?", "Locate {} for me."]).format(name)
    return Task(user, ((("find_file", {"name": name}), path),), f"{name} is at {path}.", "find")


def _read(r: random.Random) -> Task:
    path, text = _path(r), _text(r)
    user = r.choice(["Read {}.", "Show me {}.", "What does {} say?", "Print the text of {}."]).format(path)
    return Task(user, ((("read_file", {"path": path}), text),), f"It says: {text}", "read")


def _write(r: random.Random) -> Task:
    path, text = _path(r), _text(r)
    user = r.choice(['Write "{1}" to {0}.', 'Save the text "{1}" in {0}.', 'Put "{1}" into {0}.']).format(path, text)
    return Task(user, ((("write_file", {"path": path, "text": text}), "ok"),), f"I wrote it to {path}.", "write")


def _count(r: random.Random) -> Task:
    path, n = _path(r), _number(r)
    user = r.choice(["How many lines does {} have?", "Count the lines of {}.", "How long is {}?"]).format(path)
    return Task(user, ((("count_lines", {"path": path}), str(n)),), f"{path} has {n} lines.", "count")


def _list(r: random.Random) -> Task:
    folder = "/" + "/".join(r.choice(FOLDERS) for _ in range(r.randint(1, 2)))
    names = [_file(r) for _ in range(r.randint(1, 3))]
    user = r.choice(["List the files in {}.", "What is in {}?", "Which files are in {}?"]).format(folder)
    return Task(user, ((("list_files", {"folder": folder}), json.dumps(names)),), f"In {folder}: {', '.join(names)}.", "list")


def _lookup(r: random.Random) -> Task:
    name = r.choice(PEOPLE)
    mail = f"{name.lower()}@{r.choice(STEMS)}.org"
    user = r.choice(["What is the address of {}?", "Look up {}.", "Give me the e-mail of {}."]).format(name)
    return Task(user, ((("lookup_user", {"name": name}), mail),), f"The address of {name} is {mail}.", "lookup")


def _send(r: random.Random) -> Task:
    name, text = r.choice(PEOPLE), _text(r)
    user = r.choice(['Send "{1}" to {0}.', 'Tell {0} "{1}".', 'Message {0}: "{1}".']).format(name, text)
    return Task(user, ((("send_message", {"to": name, "text": text}), "sent"),), f"I sent it to {name}.", "send")


def _sum(r: random.Random) -> Task:
    a, b = _number(r), _number(r)
    if r.random() < 0.5:
        user = r.choice(["What is {} plus {}?", "Add {} and {}.", "{} + {}?", "Sum of {} and {}?"]).format(a, b)
        return Task(user, ((("add", {"a": a, "b": b}), str(a + b)),), f"{a} + {b} = {a + b}", "add")
    user = r.choice(["What is {} times {}?", "Multiply {} by {}.", "{} * {}?", "Product of {} and {}?"]).format(a, b)
    return Task(user, ((("multiply", {"a": a, "b": b}), str(a * b)),), f"{a} * {b} = {a * b}", "multiply")


def _price(r: random.Random) -> Task:
    item, p = r.choice(ITEMS), _number(r)
    user = r.choice(["What does a {} cost?", "Price of a {}?", "How much is the {}?"]).format(item)
    return Task(user, ((("get_price", {"item": item}), str(p)),), f"A {item} costs {p} USD.", "price")


def _convert(r: random.Random) -> Task:
    n, c, out = _number(r), r.choice(CURRENCIES), _number(r)
    user = r.choice(["Convert {} USD to {}.", "How much is {} USD in {}?", "{} dollars in {}?"]).format(n, c)
    return Task(user, ((("convert_currency", {"amount": n, "currency": c}), str(out)),), f"{n} USD are {out} {c}.", "convert")


def _service(r: random.Random) -> Task:
    s = r.choice(SERVICES)
    if r.random() < 0.5:
        state = r.choice(["running", "stopped", "failed"])
        user = r.choice(["Is {} running?", "What is the state of {}?", "Status of {}?", "Check {}."]).format(s)
        return Task(user, ((("service_status", {"service": s}), state),), f"{s} is {state}.", "status")
    user = r.choice(["Restart {}.", "Please restart the {} service.", "Bounce {}."]).format(s)
    return Task(user, ((("restart_service", {"service": s}), "running"),), f"{s} is running again.", "restart")


def _chain_count(r: random.Random) -> Task:
    name, who, n = _file(r), r.choice(PEOPLE), _number(r)
    path = _path(r, name)
    user = r.choice(
        ["Find {0}, count its lines and send the number to {1}.", "Count the lines of the file {0} and tell {1} how many.",
         "Locate {0}, count its lines, then message {1} with the count."]
    ).format(name, who)
    steps = (
        (("find_file", {"name": name}), path),
        (("count_lines", {"path": path}), str(n)),
        (("send_message", {"to": who, "text": f"{n} lines"}), "sent"),
    )
    return Task(user, steps, f"{path} has {n} lines; I told {who}.", "chain")


def _chain_copy(r: random.Random) -> Task:
    name, target, text = _file(r), _path(r), _text(r)
    path = _path(r, name)
    user = r.choice(
        ["Find {0}, read it and write its text to {1}.", "Copy the text of {0} into {1}.", "Look for {0}, then copy what it says to {1}."]
    ).format(name, target)
    steps = (
        (("find_file", {"name": name}), path),
        (("read_file", {"path": path}), text),
        (("write_file", {"path": target, "text": text}), "ok"),
    )
    return Task(user, steps, f"I copied {path} to {target}.", "chain")


def _chain_mail(r: random.Random) -> Task:
    who, city, degrees, sky = r.choice(PEOPLE), r.choice(CITIES), r.randint(-15, 38), r.choice(SKIES)
    mail = f"{who.lower()}@{r.choice(STEMS)}.org"
    user = r.choice(
        ["Look up {0} and send the weather in {1} there.", "Mail {0} the weather in {1}.", "Get the address of {0}, then send the weather of {1} to it."]
    ).format(who, city)
    steps = (
        (("lookup_user", {"name": who}), mail),
        (("get_weather", {"city": city}), json.dumps({"degrees": degrees, "sky": sky})),
        (("send_message", {"to": mail, "text": f"{degrees} degrees, {sky}"}), "sent"),
    )
    return Task(user, steps, f"I sent the weather in {city} to {mail}.", "chain")


def _chain_price(r: random.Random) -> Task:
    item, currency, path, p, q = r.choice(ITEMS), r.choice(CURRENCIES), _path(r), _number(r), _number(r)
    user = r.choice(
        ["Get the price of a {0}, convert it to {1} and write it to {2}.", "Save the price of the {0} in {1} to {2}."]
    ).format(item, currency, path)
    steps = (
        (("get_price", {"item": item}), str(p)),
        (("convert_currency", {"amount": p, "currency": currency}), str(q)),
        (("write_file", {"path": path, "text": f"{q} {currency}"}), "ok"),
    )
    return Task(user, steps, f"A {item} costs {q} {currency}; saved in {path}.", "chain")


def _chain_service(r: random.Random) -> Task:
    s, who, state = r.choice(SERVICES), r.choice(PEOPLE), r.choice(["stopped", "failed"])
    user = r.choice(
        ["Check {0}, restart it and tell {1}.", "If {0} is down, restart it and message {1}.", "Look at {0}, restart it, then inform {1}."]
    ).format(s, who)
    steps = (
        (("service_status", {"service": s}), state),
        (("restart_service", {"service": s}), "running"),
        (("send_message", {"to": who, "text": f"{s} was {state}, now running"}), "sent"),
    )
    return Task(user, steps, f"{s} was {state} and is running again; I told {who}.", "chain")


def _chain_sum(r: random.Random) -> Task:
    a, b, c, who = _number(r), _number(r), r.randint(2, 99), r.choice(PEOPLE)
    user = r.choice(
        ["Add {0} and {1}, multiply the sum by {2} and send the result to {3}.", "Send {3} the value of ({0} + {1}) * {2}."]
    ).format(a, b, c, who)
    s, t = a + b, (a + b) * c
    steps = (
        (("add", {"a": a, "b": b}), str(s)),
        (("multiply", {"a": s, "b": c}), str(t)),
        (("send_message", {"to": who, "text": str(t)}), "sent"),
    )
    return Task(user, steps, f"The result is {t}; I sent it to {who}.", "chain")


SINGLE: tuple[Callable[[random.Random], Task], ...] = (
    _weather, _time, _find, _read, _write, _count, _list, _lookup, _send, _sum, _price, _convert, _service,
)
CHAINS: tuple[Callable[[random.Random], Task], ...] = (
    _chain_count, _chain_copy, _chain_mail, _chain_price, _chain_service, _chain_sum,
)


def task(r: random.Random, *, chain: bool, held_out: bool) -> Task:
    """Draw a task from the training or the held-out side."""
    while True:
        found = r.choice(CHAINS if chain else SINGLE)(r)
        if found.held_out == held_out:
            return found


def tools_for(r: random.Random, found: Task, *, most: int = 6) -> list[dict[str, object]]:
    """Return the tools that the task needs among a few others, in random order."""
    names = {call[0] for call, _ in found.steps}
    others = [n for n in TOOLS if n not in names]
    names |= set(r.sample(others, r.randint(0, max(0, most - len(names)))))
    chosen = sorted(names)
    r.shuffle(chosen)
    return [TOOLS[n] for n in chosen]
