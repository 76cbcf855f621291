"""What a hub's refusals mean to a person. Pure."""

from __future__ import annotations

from edgekit.errors import BadDataError, DeniedError, EdgekitError, IoFailedError, MissingInputError

ACCEPT_AT = "https://huggingface.co"


def map_status(
    status: int,
    code: str,
    endpoint: str,
    repository: str,
    revision: str | None,
    *,
    has_token: bool,
    file: str | None = None,
) -> EdgekitError:
    """Return the error for an answer that no repetition will change.

    `code` is the hub's `X-Error-Code`. 401 without a token is ambiguous on purpose: the hub does
    not tell strangers which private repositories exist.
    """
    page = f"{ACCEPT_AT}/{repository}"
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
        if has_token:
            return DeniedError(
                f"{repository} is gated, and the account of HF_TOKEN has no access to it",
                code="gated",
                hint=f"accept its conditions at {page} with that account, then run the same "
                "command again; a fine-grained token must also allow reading gated repositories",
            )
        return DeniedError(
            f"{repository} is gated: its conditions must be accepted before it can be fetched",
            code="gated",
            hint=f"accept them at {page}, then set HF_TOKEN to a token of that account",
        )
    if status == 401:
        if has_token:
            return DeniedError(
                f"{endpoint} refuses HF_TOKEN",
                code="bad_token",
                hint=f"make a new token at {ACCEPT_AT}/settings/tokens (a mirror: in its own "
                "settings) and set HF_TOKEN to it",
            )
        return DeniedError(
            f"{repository} does not exist on {endpoint}, or it is private or gated and HF_TOKEN "
            "is not set",
            code="no_access",
            hint=f"check the name at {page}; if it is there, set HF_TOKEN",
        )
    if status in (404, 410) or code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        what = f"{repository} is not on {endpoint}"
        if code == "RevisionNotFound":
            what = f"{repository} has no revision {revision or 'main'}"
        elif code == "EntryNotFound" or file:
            what = f"{repository} has no file {file or 'of this name'}"
        private = "" if has_token else "; if it is private, set HF_TOKEN"
        return MissingInputError(what, code="not_on_hub", hint=f"check the name at {page}{private}")
    return IoFailedError(
        f"{endpoint} answers HTTP {status} about {file or repository}",
        code="hub_refused",
        hint="check the address of the hub or mirror, and what it logs",
    )


def redirect_loop(url: str) -> BadDataError:
    """Say that an address leads from one place to the next without end."""
    return BadDataError(
        f"{url} redirects without end",
        code="redirect_loop",
        hint="check the mirror's configuration",
    )
