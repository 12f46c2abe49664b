"""Reads the declarations of a project and checks them all at once, without running anything."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from estner_assets.ner.parsing import Mention
from estner_assets.ner.prompts import EntityText, ExampleText, PromptError, PromptTemplate
from estner_assets.settings import (
    NO_PROMPT,
    Annotator,
    Entity,
    LexiconAnnotator,
    LlmAnnotator,
    Profile,
    Prompt,
    ReferenceAnnotator,
)
from estner_assets.tables import Table, read_table

DEFAULT_PROFILE = "demo"
_UNNAMED = 'in "<unicode string>", '
_annotator_adapter: TypeAdapter[Annotator] = TypeAdapter(Annotator)


@dataclass(frozen=True, order=True, slots=True)
class Cell:
    """One (annotator, prompt): the unit that is annotated, trained on and scored."""

    annotator: str
    prompt: str

    def __str__(self) -> str:
        return f"{self.annotator}/{self.prompt}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands, and what would be right."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)


class DeclarationError(ValueError):
    """All mistakes of a project's declarations."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


class UnknownCellError(ValueError):
    """A cell that is not declared."""


@dataclass(frozen=True)
class Declarations:
    """Everything that a project declares, checked."""

    root: Path
    profile: Profile
    entities: tuple[Entity, ...]
    annotators: Mapping[str, Annotator]
    prompts: Mapping[str, Prompt]
    tables: Mapping[str, Table]

    @property
    def enabled_entities(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if entity.enabled)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the enabled entities, in the order of their declaration: the one label map."""
        return tuple(entity.name for entity in self.enabled_entities)

    @property
    def declared_cells(self) -> tuple[Cell, ...]:
        """Every cell of every annotator, in the profile or not."""
        return tuple(Cell(key, prompt) for key, one in self.annotators.items() for prompt in one.prompts)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of the profile."""
        active = self.profile.annotation.annotators
        return tuple(cell for cell in self.declared_cells if cell.annotator in active)

    def check_cell(self, cell: Cell) -> Cell:
        """Return the cell, or raise ``UnknownCellError`` that names the valid ones."""
        if cell not in self.cells:
            valid = ", ".join(map(str, self.cells))
            known = "is not declared" if cell not in self.declared_cells else "is not in this profile"
            raise UnknownCellError(f"cell {cell} {known} ({self.profile.key}); valid cells: {valid}")
        return cell

    def path(self, declared: str) -> Path:
        """Return a declared path, which is relative to the project."""
        return self.root / declared


def project_root() -> Path:
    """Return ESTNER_PROJECT, or the folder that holds this package."""
    return Path(os.environ.get("ESTNER_PROJECT") or Path(__file__).parent.parent).resolve()


def declarations_folder(root: Path) -> Path:
    """Return ``declarations/`` of a project, or the package's own in a checkout."""
    own = root / "declarations"
    return own if own.is_dir() else root / "estner_assets" / "declarations"


def load(root: Path | None = None, profile: str | None = None) -> Declarations:
    """Read and check all declarations; raise ``DeclarationError`` with every mistake found."""
    root = (root or project_root()).resolve()
    key = profile or os.environ.get("ESTNER_PROFILE") or DEFAULT_PROFILE
    return _load(root, key, _fingerprint(declarations_folder(root)))


def _fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file of the folder does, so that unchanged declarations are read once."""
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in stats)


@lru_cache(maxsize=8)
def _load(root: Path, key: str, fingerprint: object) -> Declarations:
    reader = _Reader(root, declarations_folder(root))
    declarations = reader.read(key)
    if reader.problems or declarations is None:
        raise DeclarationError(reader.problems)
    return declarations


class _Reader:
    """Collects mistakes instead of stopping at the first."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.problems: list[Problem] = []

    def read(self, profile_key: str) -> Declarations | None:
        entities = self._entities()
        prompts = self._prompts()
        annotators = self._annotators()
        profiles = self._profiles()
        tables = self._tables()
        self._check_prompts(prompts, entities)
        self._check_annotators(annotators, prompts)
        for profile in profiles.values():
            self._check_profile(profile, annotators)
        if profile_key not in profiles:
            self._report_missing_profile(profile_key, profiles)
            return None
        self._check_sources(profiles[profile_key])
        return Declarations(self.root, profiles[profile_key], entities, annotators, prompts, tables)

    # --- files --------------------------------------------------------------------------------------

    def _entities(self) -> tuple[Entity, ...]:
        path = self.folder / "entities.yaml"
        found = self._mapping(path, lambda key, body: Entity.model_validate({"name": key, **body}))
        if found and not any(entity.enabled for entity in found.values()):
            self._add(path, "", "no entity is enabled; set `enabled: true` on at least one")
        return tuple(found.values())

    def _annotators(self) -> dict[str, Annotator]:
        return self._mapping(
            self.folder / "annotators.yaml",
            lambda key, body: _annotator_adapter.validate_python({"key": key, **body}),
        )

    def _prompts(self) -> dict[str, Prompt]:
        found: dict[str, Prompt] = {}
        for path in sorted((self.folder / "prompts").glob("*.md")):
            front_matter, body = self._split_front_matter(path)
            if front_matter is not None:
                values = {"key": path.stem, **front_matter, "body": body}
                self._validated(path, "", partial(Prompt.model_validate, values), found, path.stem)
        return found

    def _profiles(self) -> dict[str, Profile]:
        found: dict[str, Profile] = {}
        for path in sorted((self.folder / "profiles").glob("*.yaml")):
            body = self._yaml(path)
            if body is not None:
                values = {"key": path.stem, **body}
                self._validated(path, "", partial(Profile.model_validate, values), found, path.stem)
        return found

    def _tables(self) -> dict[str, Table]:
        own = self.folder / "tables"
        folder = own if own.is_dir() else Path(__file__).parent / "declarations" / "tables"
        found: dict[str, Table] = {}
        for path in sorted(folder.glob("*.yaml")):
            if self._yaml(path) is not None:
                self._validated(path, "", partial(read_table, path), found, path.stem)
        return found

    # --- what goes across files ---------------------------------------------------------------------

    def _check_prompts(self, prompts: Mapping[str, Prompt], entities: Sequence[Entity]) -> None:
        names = [entity.name for entity in entities]
        texts = [entity_text(entity) for entity in entities if entity.enabled]
        for key, prompt in prompts.items():
            path = self.folder / "prompts" / f"{key}.md"
            if key == NO_PROMPT:
                self._add(path, "", f"{NO_PROMPT!r} is reserved for annotators without a prompt; rename the file")
            self._check_examples(path, prompt, names)
            try:
                template = PromptTemplate(prompt.body, texts, example_texts(prompt))
            except PromptError as error:
                self._add(path, "body", str(error))
                continue
            if template.asks_words != (prompt.mode == "tag_words"):
                wanted = "shows no {{ word }}" if prompt.mode == "tag_words" else "shows {{ word }}, not {{ note }}"
                self._add(path, "mode", f"is {prompt.mode}, but the body {wanted}; change one of them")

    def _check_examples(self, path: Path, prompt: Prompt, names: Sequence[str]) -> None:
        for number, example in enumerate(prompt.examples):
            position = 0
            for mention in example.mentions:
                key = f"examples[{number}]"
                if names and mention.label not in names:
                    self._add(path, key, f"unknown entity {mention.label!r}; allowed: {', '.join(names)}")
                found = example.text.find(mention.text, position)
                if found < 0:
                    self._add(path, key, f"{mention.text!r} does not stand in the example's text, in this order")
                else:
                    position = found + len(mention.text)

    def _check_annotators(self, annotators: Mapping[str, Annotator], prompts: Mapping[str, Prompt]) -> None:
        path = self.folder / "annotators.yaml"
        for key, annotator in annotators.items():
            if isinstance(annotator, LlmAnnotator):
                if annotator.score_on_gold and annotator.kind != "llama_cpp":
                    self._add(path, f"{key}.score_on_gold", "only an annotator on this machine may read gold notes")
                allowed = sorted(prompts)
            else:
                allowed = [NO_PROMPT]
            for prompt in annotator.prompts:
                if prompt not in allowed:
                    self._add(path, f"{key}.prompts", f"unknown prompt {prompt!r}; allowed: {', '.join(allowed)}")
            self._check_annotator_file(path, key, annotator)

    def _check_annotator_file(self, path: Path, key: str, annotator: Annotator) -> None:
        match annotator:
            case LexiconAnnotator(terms=declared):
                field = "terms"
            case ReferenceAnnotator(spans=declared):
                field = "spans"
            case _:
                return
        if not (self.root / declared).is_file():
            self._add(path, f"{key}.{field}", f"there is no file {declared}; paths are relative to {self.root}")

    def _check_profile(self, profile: Profile, annotators: Mapping[str, Annotator]) -> None:
        path = self.folder / "profiles" / f"{profile.key}.yaml"
        for key in profile.annotation.annotators:
            if key not in annotators:
                known = ", ".join(annotators)
                self._add(path, "annotation.annotators", f"unknown annotator {key!r}; allowed: {known}")

    def _check_sources(self, profile: Profile) -> None:
        path = self.folder / "profiles" / f"{profile.key}.yaml"
        for field, paths in (("records.paths", profile.records.paths), ("gold.paths", profile.gold.paths)):
            for declared in paths:
                if not (self.root / declared).is_file():
                    self._add(path, field, f"there is no file {declared}; paths are relative to {self.root}")

    def _report_missing_profile(self, key: str, profiles: Mapping[str, Profile]) -> None:
        folder = self.folder / "profiles"
        if not (folder / f"{key}.yaml").exists():  # otherwise its own mistakes are said already
            self._add(folder, "", f"there is no profile {key!r}; known: {', '.join(sorted(profiles)) or 'none'}")

    # --- reading ------------------------------------------------------------------------------------

    def _mapping(self, path: Path, make: Callable[[str, Any], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, body in (self._yaml(path) or {}).items():
            if isinstance(body, dict):
                self._validated(path, str(key), partial(make, key, body), found, key)
            else:
                self._add(path, str(key), "must be a mapping of settings")
        return found

    def _validated(self, path: Path, prefix: str, make: Callable[[], Any], found: dict[str, Any], key: str) -> None:
        try:
            found[key] = make()
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                where = ".".join(str(part) for part in (prefix, *detail["loc"]) if part != "")
                self._add(path, where, _message(detail))

    def _split_front_matter(self, path: Path) -> tuple[dict[str, Any] | None, str]:
        text = self._text(path)
        if text is None:
            return None, ""
        parts = text.split("\n---\n", maxsplit=1)
        if not text.startswith("---\n") or len(parts) != 2:
            self._add(path, "", "must start with YAML front matter between two lines `---`")
            return None, ""
        return self._parse(path, parts[0].removeprefix("---\n")), parts[1]

    def _yaml(self, path: Path) -> dict[str, Any] | None:
        text = self._text(path)
        return None if text is None else self._parse(path, text)

    def _text(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            self._add(path, "", f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            self._add(path, "", f"is not UTF-8 at byte {error.start}; save it as UTF-8")
        return None

    def _parse(self, path: Path, text: str) -> dict[str, Any] | None:
        try:
            body = yaml.load(text, Loader=_UniqueKeyLoader)
        except yaml.YAMLError as error:
            self._add(path, "", f"is not valid YAML: {' '.join(str(error).replace(_UNNAMED, '').split())}")
            return None
        if not isinstance(body, dict):
            self._add(path, "", "must be a YAML mapping")
            return None
        return body

    def _add(self, path: Path, key: str, message: str) -> None:
        shown = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        problem = Problem(str(shown), key, message)
        if problem not in self.problems:
            self.problems.append(problem)


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML lets a later key replace an earlier one in silence; here that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _message(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return "unknown key; look for a spelling mistake"
    if detail["type"] == "missing":
        return "is missing"
    return f"{detail['msg']}, got {detail['input']!r}"[:300]


def entity_text(entity: Entity) -> EntityText:
    """Return what a prompt may show of an entity."""
    return EntityText(entity.name, entity.definition, tuple(entity.positive), tuple(entity.negative))


def example_texts(prompt: Prompt) -> tuple[ExampleText, ...]:
    """Return the prompt's few-shot examples."""
    return tuple(
        ExampleText(example.text, tuple(Mention(one.label, one.text) for one in example.mentions))
        for example in prompt.examples
    )
