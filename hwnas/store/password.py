"""The password in a store's URL: used, and neither written nor shown.

A command takes it out of what it was given before anything else sees it, and keeps it in the environment
of this process and of those that it starts, beside the URL that it belongs to: no other server gets it.
"""

from __future__ import annotations

import os
import re

VARIABLE = "HWNAS_STORE_URL"
"""A store's URL with its password."""

# Of `${...}`, which asks the environment each time, nothing is taken.
_USER = re.compile(r"(://[^:/@\s]*):(?!\$\{)[^@\n]*@")
_QUERY = re.compile(r"(?i)([?&](?:ssl)?password=)(?!\$\{)[^&\s'\"]+")


def without(text: str) -> str:
    """Text in which URLs have no passwords."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1@", text)) if "://" in text else text


def hidden(value: object) -> object:
    """A configuration, as mappings and lists, in which URLs have no passwords."""
    if isinstance(value, dict):
        return {key: hidden(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hidden(inner) for inner in value]
    return without(value) if isinstance(value, str) else value


def kept(url: str) -> str:
    """A store's URL without its password, which `found` knows from then on."""
    bare = without(url)
    if bare != url:
        os.environ[VARIABLE] = url
    return bare


def found(url: str) -> str:
    """A store's URL with its password, if that was kept; else as it is."""
    known = os.environ.get(VARIABLE, "")
    return known if known and without(known) == url else url


def taken(arguments: list[str]) -> list[str]:
    """Arguments of a command without the password of `store.url=`.

    Raises:
        ValueError: Another argument has a password: it would be written into the run's folder.
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
