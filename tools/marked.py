"""Parts of a page that scripts make: what stands between two marks of a name."""

from __future__ import annotations


def fill(text: str, name: str, script: str, made: str) -> str:
    """``text`` with ``made`` between the marks of ``name``.

    Raises:
        ValueError: the marks are not there.
    """
    begin, end = f"<!-- {name}: made by tools/{script}.py -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"expected the marks {begin} and {end}")
    return f"{before}{begin}\n{made}\n{end}{after}"
