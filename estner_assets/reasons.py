"""Why a step is out of date, in words: what changed, from which version to which."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from estner_assets.resources.lineage import Input, Partition
from estner_assets.versions import PROFILE_SETTINGS

Difference = tuple[Input | None, Input | None]
"""An input as it was and as it is; None where there was or is none."""

_SHOWN_CHARACTERS = 40
_VERSION_CHARACTERS = 8
_HASH = re.compile(r"[0-9a-f]{64}$")


def differences(was: Sequence[Input], now: Sequence[Input]) -> list[Difference]:
    """Return the inputs that came, went or have another version."""
    before = {one.identity: one for one in was}
    after = {one.identity: one for one in now}
    return [
        (before.get(identity), after.get(identity))
        for identity in sorted(before.keys() | after.keys())
        if before.get(identity) != after.get(identity)
    ]


def reasons(difference: Difference, contents: Mapping[str, str]) -> Iterator[str]:
    """Yield what a difference means; ``contents`` has the JSON behind versions of settings."""
    was, now = difference
    one = now or was
    assert one is not None
    if was is None or now is None:
        yield f"{_name(one)} is {'gone' if now is None else 'new'}"
    elif one.kind == "asset":
        yield f"upstream {_name(one)} changed {_versions(was, now)}"
    else:
        yield from _setting_reasons(was, now, contents)


def _setting_reasons(was: Input, now: Input, contents: Mapping[str, str]) -> Iterator[str]:
    before, after = (contents.get(one.version) for one in (was, now))
    changed = list(_changed("", json.loads(before), json.loads(after))) if before and after else []
    if now.name in PROFILE_SETTINGS and changed:
        for key, old, new in changed:
            yield f"profile {now.name}{'.' if key else ''}{key}{_change(old, new)}"
        return
    details = ", ".join(f"{key}{_change(old, new)}" for key, old, new in changed)
    yield f"{_name(now)} changed {_versions(was, now)}" + (f": {details}" if details else "")


def _changed(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the innermost keys whose values differ; things with a name are told apart by it."""
    before, after = _by_name(before), _by_name(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield from _changed(f"{path}.{key}" if path else str(key), before.get(key), after.get(key))
    else:
        yield path, before, after


def _by_name(value: Any) -> Any:
    has_names = isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value)
    return {one["name"]: one for one in value} if has_names else value


def _name(one: Input) -> str:
    if one.kind == "asset":
        return str(Partition(one.name, one.annotator, one.prompt))
    is_shared = one.annotator and one.prompt  # a cell's slice of what all cells share: the step says which cell
    owner = "" if is_shared else one.annotator or one.prompt
    return f"{one.name.replace('_', ' ')} {owner}".rstrip()


def _versions(was: Input, now: Input) -> str:
    return f"{was.version[:_VERSION_CHARACTERS]} → {now.version[:_VERSION_CHARACTERS]}"


def _change(old: Any, new: Any) -> str:
    """Return the values before and after; nothing where one is too long for a line."""
    shown = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in (old, new)]
    shown = [text[:_VERSION_CHARACTERS] if _HASH.match(text) else text for text in shown]
    is_short = all(len(text) <= _SHOWN_CHARACTERS and "\n" not in text for text in shown)
    return f" {shown[0]} → {shown[1]}" if is_short else ""
