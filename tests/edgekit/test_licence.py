"""The licence gate: what may be used here, by the licence and by what the organisation says."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from edgekit.bundle.install import install
from edgekit.bundle.keys import load_trust
from edgekit.catalogue import find_model, load_models
from edgekit.errors import ConfigError, DeniedError
from edgekit.facts import Licence
from edgekit.licence import accept
from edgekit.licence_policy import Policy, check_allowed, read_policy, rulings
from edgekit.licence_served import card_of, notice_of_entry, own_words
from edgekit.obligations import obligations, words_of
from edgekit.store import Store
from tests.support.cli import Cli, free_port, until

FREE = find_model("pocket").licence
NON_PRODUCTION = find_model("codestral-22b-v0.1").licence
LLAMA4 = find_model("llama-4-scout").licence
UNREAD = replace(FREE, commercial_use=None)
CAREFUL = Licence(
    "Careful License 1", None, False, True, "evaluation only", attribution='show "Carefully Built"'
)
SAID = Policy(use="production", eu=True, monthly_users=800_000_000)


@pytest.mark.parametrize(
    ("licence", "policy", "codes"),
    [
        (FREE, Policy(), {}),
        (FREE, SAID, {}),
        (NON_PRODUCTION, Policy(), {"licence_non_production": False}),
        (NON_PRODUCTION, Policy(use="production"), {"licence_non_production": True}),
        (NON_PRODUCTION, Policy(use="evaluation"), {}),
        (LLAMA4, Policy(), {"licence_eu": False}),
        (LLAMA4, Policy(eu=False), {}),
        (LLAMA4, Policy(eu=True), {"licence_eu": True}),
        (LLAMA4, Policy(eu=False, monthly_users=700_000_000), {}),
        (LLAMA4, Policy(eu=False, monthly_users=700_000_001), {"licence_users": True}),
        (LLAMA4, SAID, {"licence_eu": True, "licence_users": True}),
        (UNREAD, SAID, {"licence_unread": False}),
    ],
)
def test_what_a_licence_withholds(licence: Licence, policy: Policy, codes: dict[str, bool]) -> None:
    assert {ruling.code: ruling.refused for ruling in rulings(licence, policy)} == codes


def settle(folder: Path, text: str) -> Path:
    (folder / "trust.toml").write_text(f"[licence]\n{text}\n")
    return folder


def test_restricted_models_are_refused_until_accepted(tmp_path: Path) -> None:
    card = find_model("codestral-22b-v0.1")
    with pytest.raises(DeniedError) as caught:
        check_allowed(card, tmp_path, tmp_path)
    assert caught.value.code == "licence_not_accepted"
    accept(card, tmp_path)
    (said,) = check_allowed(card, tmp_path, tmp_path)
    assert "no commercial use" in said


def test_acceptance_is_no_way_round_what_the_organisation_says(tmp_path: Path) -> None:
    card = find_model("codestral-22b-v0.1")
    accept(card, tmp_path)
    with pytest.raises(DeniedError) as caught:
        check_allowed(card, tmp_path, settle(tmp_path, 'use = "production"'))
    assert caught.value.code == "licence_non_production"
    warned = settle(tmp_path, 'use = "production"\nrestricted = "warn"')
    assert len(check_allowed(card, tmp_path, warned)) == 1


def test_warn_lets_everything_pass_and_says_so(tmp_path: Path) -> None:
    card = find_model("llama-4-scout")
    said = check_allowed(card, tmp_path, settle(tmp_path, 'restricted = "warn"\neu = true'))
    assert len(said) == 2


@pytest.mark.parametrize(
    "text", ['use = "war"', 'eu = "yes"', "monthly_users = -1", "monthly_users = true", "x = 1"]
)
def test_a_policy_that_cannot_be_meant_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_policy(settle(tmp_path, text))


def test_the_licences_of_the_catalogue_are_spelled_out() -> None:
    """Words are prescribed for licences that exist, and each licence asks something."""
    models = load_models().values()
    assert {words_of(m.licence).shown for m in models if m.licence.name.startswith("Llama 4")} == {
        "Built with Llama"
    }
    for model in models:
        labels = [label for label, _ in obligations(model.licence)]
        assert {"Use", "Asks"} <= set(labels), model.id
        if "Built with Llama" in (model.licence.attribution or ""):
            assert words_of(model.licence).shown == "Built with Llama", model.id


def test_commands_refuse_with_the_way_out(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    for command in (("pull",), ("bundle", "create", "--device", "a10")):
        done = cli.run(*command, "codestral-22b-v0.1", "--json")
        assert done.returncode == 77, done.stdout
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "licence_not_accepted"
        assert "licence codestral-22b-v0.1 --accept" in error["hint"]
    shown = cli.run("licence", "llama-4-scout").stdout
    assert "Built with Llama" in shown
    assert "700,000,000" in shown
    assert "Warning" in shown


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, Path]:
    cli = Cli(tmp_path_factory.mktemp("licence"))
    cli.json("bundle", "create", "pocket:Q8_0", "--output", "p")
    return cli, next((cli.store / "blobs").glob("*.gguf"))


def test_a_file_of_the_store_is_known_again(stored: tuple[Cli, Path], tmp_path: Path) -> None:
    cli, file = stored
    known = card_of(file, Store(cli.store))
    assert known is not None
    assert known[0].id == "pocket"
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert card_of(copy, Store(cli.store)) is None
    found = own_words(copy)
    assert found is not None
    assert found.licence == "apache-2.0"
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    assert own_words(tmp_path / "no.gguf") is None


def test_a_server_shows_what_its_models_ask(stored: tuple[Cli, Path]) -> None:
    """The real server of `serve`: text for people, JSON for programs, a word in the status."""
    cli, file = stored
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = cli.start("serve", file, "--model-id", "pocket", "--port", str(port), "--no-canary",
                       "--api-key", "k", "--offline")  # fmt: skip
    try:
        with httpx.Client(trust_env=False, headers={"authorization": "Bearer k"}) as client:
            until(lambda: answers(client, f"{url}/livez", server), "the server")
            text = client.get(f"{url}/licence")
            assert text.headers["content-type"].startswith("text/plain")
            assert "Apache License" in text.text
            assert "quantized to Q8_0" in text.text
            assert client.get(f"{url}/license").text == text.text
            record = client.get(f"{url}/licence", headers={"accept": "application/json"}).json()
            assert record["data"][0]["licence"] == "Apache License 2.0"
            status = client.get(f"{url}/status").json()
            assert status["models"][0]["licence"] == {"name": "Apache License 2.0", "shown": None}
        assert httpx.get(f"{url}/licence", trust_env=False).status_code == 401
    finally:
        server.terminate()
        _, said = server.communicate(timeout=60)
    assert "Apache License 2.0" in said


def answers(client: httpx.Client, url: str, server: subprocess.Popen[str]) -> bool:
    assert server.poll() is None, server.communicate()[1]
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


RESTRICTED = """
id = "lawyered"
name = "Lawyered"
params = 7_802_112
n_ctx_train = 16384
header_bytes = 128_608
[licence]
name = "Careful License 1"
acceptance_required = true
commercial_use = false
conditions = "evaluation only"
attribution = "show \\"Carefully Built\\""
[[sources]]
kind = "builtin"
location = "pocket"
[config]
architectures = ["MistralForCausalLM"]
model_type = "mistral"
hidden_size = 256
intermediate_size = 1024
num_hidden_layers = 6
num_attention_heads = 4
num_key_value_heads = 1
head_dim = 64
vocab_size = 4096
max_position_embeddings = 16384
"""


def with_model(cli: Cli) -> Cli:
    (cli.config / "models").mkdir(parents=True)
    (cli.config / "models" / "lawyered.toml").write_text(RESTRICTED)
    (cli.config / "trust.toml").write_text('signature = "warn"\n')
    return cli


def refusal(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments, "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode in (66, 77), done.stdout
    return str(error["code"])


def test_a_restricted_model_travels_with_its_text_and_acceptance(tmp_path: Path) -> None:
    """Refused, accepted, refused for want of the text, bundled; the other machine may use it."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = with_model(Cli(tmp_path / "here")), with_model(Cli(tmp_path / "there"))
    create = ("bundle", "create", "lawyered:Q8_0", "--output", str(tmp_path / "b"))
    assert refusal(here, *create) == "licence_not_accepted"
    assert refusal(here, "deploy", "lawyered:Q8_0") == "licence_not_accepted"
    here.json("licence", "lawyered", "--accept")
    assert refusal(here, *create) == "licence_text_missing"
    (here.data / "licences" / "lawyered.txt").write_bytes(b"be careful\n")
    here.json("bundle", "keygen", "ops")
    here.json(*create, "--key", "ops.pem")
    text = tmp_path / "b" / "licences" / "lawyered-Q8_0" / "LICENSE.txt"
    assert text.read_bytes() == b"be careful\n"

    assert refusal(there, "deploy", "lawyered:Q8_0") == "licence_not_accepted"
    store = Store(there.store)
    public = here.home / "ops.pub"
    carried = install(tmp_path / "b", store, load_trust(there.config, (public,)))
    entry = carried.models[0].entry
    file = store.path(entry)
    assert refusal(there, "serve", str(file), "--no-canary") == "licence_not_accepted"
    card = replace(find_model("pocket"), id="lawyered", licence=CAREFUL)
    notice = notice_of_entry(card, entry, store, None, there.data)
    assert notice.shown == 'show "Carefully Built"'
    assert notice.text.index("Changed: converted") < notice.text.index("be careful")
    record = there.json("licence", "lawyered")
    assert record["accepted"] is None
    there.json("bundle", "install", str(tmp_path / "b"), "--trust", str(public))
    assert there.json("licence", "lawyered")["accepted"]["licence"] == "Careful License 1"
