"""The password in a store's URL, which is never written to a file or shown.

A command removes the password from its arguments before any other code sees them. It keeps the URL with the
password in the environment, for this process and its children; only the server of this URL gets the password.
"""

from __future__ import annotations

import os
import re

VARIABLE = "HWNAS_STORE_URL"
"""Environment variable for a store's URL with its password."""

# `${...}` is not a password: it is read from the environment each time.
_USER = re.compile(r"(://[^:/@\s]*):(?!\$\{)[^@\n]*@")
_QUERY = re.compile(r"(?i)([?&](?:ssl)?password=)(?!\$\{)[^&\s'\"]+")


def without(text: str) -> str:
    """Text without the passwords of URLs."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1@", text)) if "://" in text else text


def hidden(value: object) -> object:
    """A configuration of dicts, lists and texts without the passwords of URLs."""
    if isinstance(value, dict):
        return {key: hidden(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hidden(inner) for inner in value]
    return without(value) if isinstance(value, str) else value


def kept(url: str) -> str:
    """A store's URL without its password, which is kept for `found`."""
    bare = without(url)
    if bare != url:
        os.environ[VARIABLE] = url
    return bare


def found(url: str) -> str:
    """A store's URL with the password that `kept` took from it, if any."""
    known = os.environ.get(VARIABLE, "")
    return known if known and without(known) == url else url


def taken(arguments: list[str]) -> list[str]:
    """Arguments of a command without the password of `store.url=`.

    Raises:
        ValueError: Another argument has a password, which would be written into the run's folder.
    """
    bare = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.lstrip("+") == "store.url" and equals:
            bare.append(f"{name}={_kept_quoted(value)}")
        elif without(argument) != argument:
            raise ValueError(
                f"{without(argument)} has a password, which would be written into the run's folder; leave it "
                "out, and give it as the server's programs read it (PostgreSQL: PGPASSWORD or ~/.pgpass)"
            )
        else:
            bare.append(argument)
    return bare


def _kept_quoted(value: str) -> str:
    quote = value[0] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else ""
    return quote + kept(value[1:-1] if quote else value) + quote
