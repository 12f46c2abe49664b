"""Reads the declarations of a project and checks them all at once, without running anything."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from estner_assets.ner.examples import holding, ungrounded
from estner_assets.ner.languages import language
from estner_assets.ner.parsing import Mention
from estner_assets.ner.prompts import EntityText, ExampleText, PromptError, PromptTemplate
from estner_assets.settings import (
    NO_PROMPT,
    Annotator,
    ConsensusAnnotator,
    Entity,
    Example,
    LexiconAnnotator,
    LlmAnnotator,
    Price,
    Profile,
    Prompt,
    ReferenceAnnotator,
)
from estner_assets.tables import Table, read_table

DEFAULT_PROFILE = "demo"
_POOL = re.compile(rb"""^example_pool:[ \t]*["']?(.*?)["']?[ \t]*(?:#.*)?\r?$""", re.MULTILINE)
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
    prices: Mapping[str, Price]
    """By model name. A model that is not here has no known price."""

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
    folder = declarations_folder(root)
    return _load(root, key, (_fingerprint(folder), _pools_fingerprint(root, folder)))


def _fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file of the folder does, so that unchanged declarations are read once."""
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in stats)


def _pools_fingerprint(root: Path, folder: Path) -> tuple[object, ...]:
    """Return what changes when a pool of examples does, which lies elsewhere and is read with its prompt."""
    found = (_POOL.findall(path.read_bytes()) for path in sorted((folder / "prompts").glob("*.md")))
    pools = [root / os.fsdecode(name) for names in found for name in names]
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in pools if path.is_file())


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
        prices = self._prices()
        self._check_prompts(prompts, entities, profiles.get(profile_key))
        self._check_annotators(annotators, prompts)
        for profile in profiles.values():
            self._check_profile(profile, annotators)
        if profile_key not in profiles:
            self._report_missing_profile(profile_key, profiles)
            return None
        self._check_sources(profiles[profile_key])
        return Declarations(self.root, profiles[profile_key], entities, annotators, prompts, tables, prices)

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
        return {key: self._with_pool(prompt) for key, prompt in found.items()}

    def _with_pool(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the examples of its pool, those that can be read."""
        if prompt.example_pool is None:
            return prompt
        path = self._prompt_path(prompt.key)
        pool = self.root / prompt.example_pool
        if not pool.is_file():
            self._add_missing(path, "example_pool", prompt.example_pool)
            return prompt
        found: dict[str, Example] = {}
        for number, line in enumerate((self._text(pool) or "").split("\n"), start=1):
            if line.strip():
                self._validated(pool, f"line {number}", partial(Example.model_validate_json, line), found, str(number))
        if found and len(found) < prompt.count:
            self._add(path, "count", f"is {prompt.count}, but {prompt.example_pool} holds {len(found)} examples")
        return prompt.with_pool(list(found.values()))

    def _prompt_path(self, key: str) -> Path:
        return self.folder / "prompts" / f"{key}.md"

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

    def _prices(self) -> dict[str, Price]:
        path = self.folder / "prices.yaml"
        # a project without prices is no mistake: what its LLMs cost is unknown
        return self._mapping(path, lambda _, body: Price.model_validate(body)) if path.exists() else {}

    # --- what goes across files ---------------------------------------------------------------------

    def _check_prompts(
        self, prompts: Mapping[str, Prompt], entities: Sequence[Entity], profile: Profile | None
    ) -> None:
        names = [entity.name for entity in entities]
        texts = [entity_text(entity) for entity in entities if entity.enabled]
        for key, prompt in prompts.items():
            path = self._prompt_path(key)
            if key == NO_PROMPT:
                self._add(path, "", f"{NO_PROMPT!r} is reserved for annotators without a prompt; rename the file")
            for where, examples in (("examples", prompt.examples), ("example_pool", prompt.pool)):
                self._check_examples(path, where, examples, names)
                if profile is not None:
                    self._check_shown(path, where, examples, profile)
            for group in [[one] for one in texts] if prompt.per_entity else [texts]:
                self._check_body(path, prompt, group)

    def _check_body(self, path: Path, prompt: Prompt, entities: Sequence[EntityText]) -> None:
        entity = entities[0] if prompt.per_entity else None
        examples = example_texts(prompt)
        for field, body in (("body", prompt.body), ("second_look", prompt.second_look)):
            if body is not None:
                try:
                    template = PromptTemplate(body, entities, examples, entity)
                except PromptError as error:
                    self._add(path, field, str(error))
                else:
                    self._check_variables(path, prompt, field, template)

    def _check_variables(self, path: Path, prompt: Prompt, field: str, template: PromptTemplate) -> None:
        by_word = prompt.mode == "tag_words"
        if template.asks_words != by_word:
            wanted = "shows no {{ word }}" if by_word else "shows {{ word }}, not {{ note }}"
            self._add(path, "mode", f"is {prompt.mode}, but the {field} {wanted}; change one of them")
        if template.shows_answer != (field == "second_look"):
            wanted = "must show {{ answer }}" if field == "second_look" else "cannot show {{ answer }}"
            self._add(path, field, wanted)
        if prompt.per_entity and not template.variables & {"entity", "entities", "labels"}:
            self._add(path, field, "never says which entity is asked for; write {{ entity.name }} where it belongs")
        if prompt.example_pool and field == "body" and "examples" not in template.variables:
            self._add(path, field, "never shows the examples of example_pool; loop over `examples`")

    def _check_examples(self, path: Path, where: str, examples: Sequence[Example], names: Sequence[str]) -> None:
        for number, example in enumerate(examples):
            position = 0
            for mention in example.mentions:
                key = f"{where}[{number}]"
                if names and mention.label not in names:
                    self._add(path, key, f"unknown entity {mention.label!r}; allowed: {', '.join(names)}")
                found = example.text.find(mention.text, position)
                if found < 0:
                    self._add(path, key, f"{mention.text!r} does not stand in the example's text, in this order")
                else:
                    position = found + len(mention.text)

    def _check_shown(self, path: Path, where: str, examples: Sequence[Example], profile: Profile) -> None:
        """Check examples as they would be read if a note were answered like this, and that none is a gold note."""
        rules = language(profile.language)
        for number, example in enumerate(map(example_text, examples)):
            for text in ungrounded(example, rules):
                if text in example.text:  # otherwise it is said already
                    self._add(path, f"{where}[{number}]", f"{text!r} is no word of the example's text, or not so often")
        for number in holding([example.text for example in examples], self._gold_texts(profile) if examples else []):
            self._add(path, f"{where}[{number}]", "holds a gold note; a prompt must not show what it is tested on")

    def _gold_texts(self, profile: Profile) -> list[str]:
        """Return the texts of the gold files, as far as they can be read; what is wrong in them is said elsewhere."""
        texts: list[str] = []
        for path in (self.root / declared for declared in profile.gold.paths):
            for line in path.read_bytes().split(b"\n") if path.is_file() else ():
                try:
                    note = json.loads(line)
                except ValueError:
                    continue
                if isinstance(note, dict) and isinstance(note.get("text"), str):
                    texts.append(note["text"])
        return texts

    def _check_annotators(self, annotators: Mapping[str, Annotator], prompts: Mapping[str, Prompt]) -> None:
        path = self.folder / "annotators.yaml"
        for key, annotator in annotators.items():
            if isinstance(annotator, LlmAnnotator):
                if annotator.score_on_gold and annotator.kind != "llama_cpp":
                    self._add(path, f"{key}.score_on_gold", "only an annotator on this machine may read gold notes")
                allowed = sorted(prompts)
            else:
                if annotator.score_on_gold and not isinstance(annotator, LexiconAnnotator):
                    self._add(path, f"{key}.score_on_gold", f"a {annotator.kind} cannot be asked about gold notes")
                allowed = [NO_PROMPT]
            for prompt in annotator.prompts:
                if prompt not in allowed:
                    self._add(path, f"{key}.prompts", f"unknown prompt {prompt!r}; allowed: {', '.join(allowed)}")
            self._check_replicates(path, annotator, prompts)
            self._check_annotator_file(path, key, annotator)
            if isinstance(annotator, ConsensusAnnotator):
                self._check_members(path, key, annotator, annotators)

    def _check_replicates(self, path: Path, annotator: Annotator, prompts: Mapping[str, Prompt]) -> None:
        for prompt in (prompts[key] for key in annotator.prompts if key in prompts):
            if isinstance(annotator, LlmAnnotator) and annotator.temperature == 0 and prompt.replicates > 1:
                same = f"is 0, so that the {prompt.replicates} replicates of {prompt.key} are the same answer"
                self._add(path, f"{annotator.key}.temperature", f"{same}; raise it, or choose another prompt")

    def _check_members(
        self, path: Path, key: str, consensus: ConsensusAnnotator, annotators: Mapping[str, Annotator]
    ) -> None:
        allowed = [
            name for name, one in annotators.items() if not isinstance(one, ConsensusAnnotator | ReferenceAnnotator)
        ]
        for member in consensus.members:
            if member not in allowed:
                self._add(path, f"{key}.members", f"{member!r} cannot vote; allowed: {', '.join(allowed)}")

    def _check_annotator_file(self, path: Path, key: str, annotator: Annotator) -> None:
        match annotator:
            case LexiconAnnotator(terms=declared):
                field = "terms"
            case ReferenceAnnotator(spans=declared):
                field = "spans"
            case _:
                return
        if not (self.root / declared).is_file():
            self._add_missing(path, f"{key}.{field}", declared)

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
                    self._add_missing(path, field, declared)

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

    def _add_missing(self, path: Path, key: str, declared: str) -> None:
        self._add(path, key, f"there is no file {declared}; paths are relative to {self.root}")

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
    """Return the prompt's few-shot examples, of a pool the first ones."""
    return tuple(map(example_text, prompt.examples or prompt.pool[: prompt.count]))


def example_text(example: Example) -> ExampleText:
    """Return an example as a prompt shows it."""
    return ExampleText(example.text, tuple(Mention(one.label, one.text) for one in example.mentions))
