"""Versions of settings: a hash of exactly what reaches an asset, and nothing that does not."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from estner_assets.declarations import Cell, Declarations
from estner_assets.settings import NO_PROMPT, LexiconAnnotator, LlmAnnotator, ReferenceAnnotator

# What people read, and how fast or how stubbornly an annotator is asked, changes no answer.
_ANNOTATOR_OPERATION = {
    "key",
    "title",
    "prompts",
    "notes",
    "score_on_gold",
    "concurrency",
    "timeout_s",
    "retries",
    "requests_per_minute",
    "tokens_per_minute",
    "api_key_env",
    "threads",
    "price",
    "mode",
    "batch_requests",
    "batch_poll_s",
    "batch_max_wait_s",
}
# A prompt that does not use what came later means what it meant before.
_LATER_PROMPT_FIELDS = {
    "per_entity",
    "reasoning",
    "example_pool",
    "choose",
    "count",
    "seed",
    "window_words",
    "overlap_words",
    "replicates",
    "min_votes",
    "second_look",
}
KEYED_SETTINGS = frozenset({"prompt", "annotator", "entities", "annotation", "gold_annotator", "systems"})
"""Settings that differ from one prompt, annotator or cell to the next."""

PROFILE_SETTINGS = frozenset(
    {"records", "gold", "generator", "sampling", "originality", "annotation", "tagger", "evaluation", "learning_curves"}
)
"""Settings that are sections of the profile."""

_file_hashes: dict[tuple[str, int, int], str] = {}


def content_version(content: Any) -> str:
    """Return a short hash of JSON-like content that does not depend on the order of keys."""
    encoded = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(encoded.encode()).hexdigest()[:12]


def setting(declarations: Declarations, name: str, key: str | Cell | None = None) -> Any:
    """Return the content of a slice of the declarations, as JSON-like values.

    ``key`` is the prompt, the annotator or the cell for the slices that belong to one.
    """
    profile = declarations.profile
    match name, key:
        case "prompt", str():
            return prompt_content(declarations, key)
        case "annotator", str():
            return annotator_content(declarations, key)
        case "records", None:
            return profile.records.model_dump() | {"files": _files(declarations, profile.records.paths)}
        case "gold", None:
            return profile.gold.model_dump() | {"files": _files(declarations, profile.gold.paths)}
        case "entity_names", _:
            return list(declarations.labels)
        case "entities", Cell():
            return _entities(declarations, key)
        case "annotation", Cell():
            return {
                "notes": notes_of(declarations, key),
                "seed": profile.annotation.seed,
                "language": profile.language,
            }
        case "systems", Cell():
            return systems_of(declarations, key)
        case "gold_annotator", Cell():
            return _gold_annotator(declarations, key)
        case "report", None:
            return {"profile": profile.key, "description": profile.description}
        case (("generator" | "sampling" | "originality" | "tagger" | "evaluation" | "learning_curves"), _):
            return getattr(profile, name).model_dump()
    raise KeyError(f"no setting {name!r} for {key!r}")


def prompt_content(declarations: Declarations, key: str) -> dict[str, Any]:
    """Return what a prompt means, with the hash of its pool: trailing white space and the title are left out."""
    if key == NO_PROMPT:
        return {"mode": NO_PROMPT}
    prompt = declarations.prompts[key]
    content = prompt.model_dump(exclude={"key", "title", *_LATER_PROMPT_FIELDS})
    content |= prompt.model_dump(include=_LATER_PROMPT_FIELDS, exclude_defaults=True)
    if prompt.example_pool:
        content["files"] = _files(declarations, [prompt.example_pool])
    return content | {"body": "\n".join(line.rstrip() for line in content["body"].strip().splitlines())}


def annotator_content(declarations: Declarations, key: str) -> dict[str, Any]:
    """Return what an annotator means, with the hash of the file that it reads."""
    annotator = declarations.annotators[key]
    content = annotator.model_dump(exclude=_ANNOTATOR_OPERATION)
    match annotator:
        case LexiconAnnotator(terms=declared) | ReferenceAnnotator(spans=declared):
            return content | {"files": _files(declarations, [declared])}
    return content


def notes_of(declarations: Declarations, cell: Cell) -> int:
    """Return how many notes the cell is given at most."""
    return declarations.annotators[cell.annotator].notes or declarations.profile.annotation.notes


def systems_of(declarations: Declarations, cell: Cell) -> list[str]:
    """Return what is scored on gold for a cell: its tagger, and its annotator where that is declared."""
    return ["tagger", "annotator"] if declarations.annotators[cell.annotator].score_on_gold else ["tagger"]


def _entities(declarations: Declarations, cell: Cell) -> Any:
    if isinstance(declarations.annotators[cell.annotator], LlmAnnotator):
        return [entity.model_dump(exclude={"enabled"}) for entity in declarations.enabled_entities]
    return list(declarations.labels)  # rules never see a definition


def _gold_annotator(declarations: Declarations, cell: Cell) -> Any:
    if not declarations.annotators[cell.annotator].score_on_gold:
        return None
    return {
        "annotator": annotator_content(declarations, cell.annotator),
        "prompt": prompt_content(declarations, cell.prompt),
        "entities": _entities(declarations, cell),
        "language": declarations.profile.language,
    }


def _files(declarations: Declarations, paths: list[str]) -> Mapping[str, str]:
    return {path: file_hash(declarations.path(path)) for path in paths}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or ``missing``; a file is read again only when size or time moved."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _file_hashes:
        with path.open("rb") as file:
            _file_hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _file_hashes[key]
