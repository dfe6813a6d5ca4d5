"""The fields of one audit record.

A user-space record is `…kernel's fields… msg='op=… acct="…" exe="…" hostname=H addr=A terminal=T res=R'`, and then, after GS, names for the
numbers. Text of a peer can stand in acct (in hex when it holds blanks or double quotes) and in H (as it is). So the kernel's fields are read
first, the message ends at its last quote, and A, T and R are read from its end.
"""

# ruff: noqa: E501  # tables

import re

_FIELD = re.compile(r"([a-zA-Z_][\w-]*)=(\"[^\"]*\"|'[^']*'|[^\s'\"]*)")
_NAMES_AFTER = re.compile(r"'? ?((?:[A-Z][A-Z_]*=\"[^\"']*\" ?)+)$")
_END = re.compile(r" \(?hostname=(.*?),? addr=([^ ,]*),? terminal=([^ ,]*),? res=([a-z0-9]+)\)?$", re.DOTALL)
_WORK = re.compile(r"op=([^=]*?)(?= [a-z_]+=| *$)")
_RESULT = re.compile(r" res=([a-z0-9]+)\)?$")
_HEX_FIELDS = frozenset(
    {"proctitle", "comm", "exe", "cmd", "acct", "name", "cwd", "key", "data", "path", "ocomm", "vm", "grp", "sw", "root_dir", "device"}
)  # fmt: skip
WORD_CHARS_MIN = 8
"""A shorter a0, a1 … is a number of a SYSCALL and no word of an EXECVE in hex."""
_PLAIN = frozenset({"pid", "ppid", "uid", "auid", "ses", "gid", "euid", "suid", "fsuid", "egid", "sgid", "fsgid", "subj", "arch", "syscall", "success", "exit", "items", "tty"})  # fmt: skip
"""Numbers and labels that the kernel writes: never quoted, never in hex."""
_HEX = re.compile(r"(?:[0-9A-F]{2})+")
NOBODY = frozenset({"4294967295", "-1", "unset"})


def fields_of(body: str) -> dict[str, str]:
    """Return the fields of a record. The kernel's own stand first and are not overridden."""
    fields: dict[str, str] = {}
    outer, inside, message = body.partition("msg='")
    names = ""
    if inside:
        # The last GS: one that came in with a host name stands before it.
        if not message.endswith("'"):
            before, gs, after_gs = message.rpartition("\x1d")
            after = _NAMES_AFTER.fullmatch(after_gs) if gs else _NAMES_AFTER.search(message)
            if after is not None:
                message, names = before if gs else message[: after.start()], after[1]
        message = message.rstrip().removesuffix("'")
    else:
        outer, _, names = outer.partition("\x1d")
    for name, value in _FIELD.findall(f"{outer} {names}" if names else outer):
        if name not in fields:
            fields[name] = value[1:-1] if value[:1] == '"' else value if name in _PLAIN else _decoded(name, value)
    if inside:
        _add_message(message, fields)
    return fields


def _add_message(message: str, fields: dict[str, str]) -> None:
    # No quoted value holds a blank, so the first of these is libaudit's own. RHEL 5 put parentheses around the end.
    at = message.find(" hostname=")
    at = at if at >= 0 else message.find(" (hostname=")
    end = _END.match(message, at) if at >= 0 else None
    if end is not None:
        message = message[:at]
        for name, value in zip(("hostname", "addr", "terminal", "res"), end.groups(), strict=True):
            fields.setdefault(name, value.strip('"'))
    else:
        result = _RESULT.search(message)
        if result is not None:
            fields.setdefault("res", result[1])
    if message.startswith("op="):  # several words
        work = _WORK.match(message)
        if work is not None:
            fields["op"] = work[1]
    elif message.startswith(("avc:", "apparmor=")):
        fields.setdefault("avc", message)
    for name, value in _FIELD.findall(message):
        if name not in fields:
            fields[name] = value[1:-1] if value[:1] == '"' else _decoded(name, value.rstrip(","))


def _decoded(name: str, value: str) -> str:
    """A value without its quotes; one with blanks or control characters was written in hex."""
    if value[:1] in {'"', "'"}:
        return value[1:-1]
    word = name[0] == "a" and name[1:].isdecimal() and len(value) >= WORD_CHARS_MIN
    if not (word or name in _HEX_FIELDS) or not _HEX.fullmatch(value):
        return value
    return bytes.fromhex(value).decode("utf-8", "backslashreplace").replace("\0", " ").strip()
