"""Writes the demo corpus from the grammar beside this file: fictional Estonian notes and their entity spans.

A template is text with `{a|b|}` (one of the options, nested) and `<slot>`:

    <200-400/50>    a number from a range, with a step      <3,1-5,6>   a decimal
    <drug.kom>      an entry of the group `drug`, comitative; without a case the nominative
    <op1>           the entry that this note has tied to `op1`
    <EKG.ine>       the entry of the lexicon with this nominative
    <keemiaravi:keemia->  a surface that no rule derives
    <complaint>     a fragment of the role `complaint`

An option or entry that begins with a condition (`@naine`, `@60+`, `@-14`, `@home`) holds only for such.
Names are looked up in the scene of the procedure, then the diagnosis, the speciality and common.yaml.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

GRAMMAR = Path(__file__).resolve().parent
RECORDS = GRAMMAR.parent / "records"
FIELDS = ("record_id", "patient_id", "date", "genre", "age_group", "sex", "diagnosis", "text")
SEED, PATIENTS, NOTES = 2024, 1500, 4500
WORDS = range(15, 81)
KINDS = {"drugs": "DRUG", "procs": "PROCEDURE", "terms": ""}
HELD_OUT_KEYS = {"drugs": "DRUG", "procedures": "PROCEDURE"}
SUFFIXES = {
    "kom": "ga",
    "ela": "st",
    "all": "le",
    "ade": "l",
    "abl": "lt",
    "ine": "s",
    "tra": "ks",
    "abe": "ta",
}
OPEN, CLOSE = {"DRUG": "\x01", "PROCEDURE": "\x02"}, "\x03"
LABELS = {mark: kind for kind, mark in OPEN.items()}
EPOCH, LAST_DAY = date(2012, 1, 1), date(2023, 12, 31)


class GrammarError(ValueError):
    """The grammar names something that it does not hold."""


class DeadEnd(Exception):
    """No option of a choice fits this note: the note is drawn again."""


# ---------------------------------------------------------------------------------------------- the lexicon


@dataclass(frozen=True)
class Entry:
    """A drug, a procedure or a plain term in its three principal parts."""

    kind: str
    nominative: str
    genitive: str
    partitive: str
    dose: str = ""
    condition: str = ""

    def form(self, case: str) -> str:
        if case in ("", "nom"):
            return self.nominative
        if case == "gen":
            return self.genitive
        if case == "par":
            return self.partitive
        if case.startswith("ravi"):
            return self.nominative + "-" * (not self.nominative.islower()) + case
        joint = "-" if self.is_abbreviation and self.genitive == self.nominative else ""
        return self.genitive + joint + SUFFIXES[case]

    @property
    def is_abbreviation(self) -> bool:
        return self.partitive.startswith(f"{self.nominative}-")


def principal_parts(spec: str) -> tuple[str, str, str]:
    """`X/Y/Z` as it stands; `KT-d` and `MTX-i` abbreviations; `X+i`: Xi, Xi; `X+it`: Xi, Xit; `X=` stays."""
    if "/" in spec:
        nominative, genitive, partitive = spec.split("/")
        return nominative, genitive, partitive
    if match := re.fullmatch(r"(.+)-([dti])", spec):
        stem, tail = match.groups()
        return stem, f"{stem}-i" if tail == "i" else stem, f"{stem}-{tail}"
    if spec.endswith("="):
        return (spec[:-1],) * 3
    if spec.endswith("mine"):
        return spec, spec[:-2] + "se", spec[:-2] + "st"
    stem, plus, tail = spec.partition("+")
    if re.search(r"[a-zõäöü](aa|ii)t$", stem) and tail == "i":  # atsetaat : atsetaadi : atsetaati
        return stem, f"{stem[:-1]}di", f"{stem}i"
    genitive, stem = stem + tail.removesuffix("t"), stem.removesuffix("'")
    if tail == "e" and stem.endswith("us"):
        return stem, genitive, stem + "t"
    if not plus or not tail or tail.endswith("t"):
        return stem, genitive, genitive + "t"
    return stem, genitive, genitive


def read_entry(kind: str, text: str) -> Entry:
    """`@18+ metoprolool+i 25|50 mg 1x1`: a condition, the spec and the dose; only the spec is needed."""
    condition, rest = split_condition(text.strip())
    spec, _, dose = re.sub(r"\s+(?=\d)", "\n", rest, count=1).partition("\n")
    head, space, tail = dose.partition(" ")
    nominative, *oblique = principal_parts(spec)
    if "/" not in spec:
        oblique = [agreeing(form, ending) for form, ending in zip(oblique, ("se", "st"), strict=True)]
    return Entry(kind, nominative, *oblique, f"{{{head}}}{space}{tail}" if dose else "", condition)


def agreeing(form: str, ending: str) -> str:
    """The adjectives before the head follow it: `lahtine repositsiooni` becomes `lahtise repositsiooni`."""
    return re.sub(r"(?<=i|r|n|s|v)ne(?= )", ending, form)


def split_condition(text: str) -> tuple[str, str]:
    match = re.match(r"@(\S+)\s+", text)
    return (match[1], text[match.end() :]) if match else ("", text)


# ---------------------------------------------------------------------------------------------- templates


class Slot(NamedTuple):
    name: str
    case: str = ""
    surface: str = ""


class Option(NamedTuple):
    condition: str
    nodes: tuple[Any, ...]  # str | Slot | tuple[Option, ...]


SLOT = re.compile(r"<([^<>]+)>")


def read_slot(text: str) -> Slot:
    name, colon, surface = text.partition(":")
    if colon:
        return Slot(name, surface=surface)
    name, _, case = text.partition(".")
    return Slot(name, case)


@cache
def parse(text: str) -> Option:
    condition, body = split_condition(text)
    nodes, end = parse_nodes(body, 0, "")
    if end != len(body):
        raise GrammarError(f"Unbalanced braces: {text}")
    return Option(condition, nodes)


def parse_nodes(text: str, at: int, stop: str) -> tuple[tuple[Any, ...], int]:
    nodes: list[Any] = []
    while at < len(text) and text[at] not in (stop or "}"):
        if text[at] == "{":
            options: list[Option] = []
            while text[at] != "}":
                condition, body = split_condition(text[at + 1 :])
                inner, at = parse_nodes(text, len(text) - len(body), "|}")
                if at == len(text):
                    raise GrammarError(f"Unbalanced braces: {text}")
                options.append(Option(condition, inner))
            nodes.append(tuple(options))
            at += 1
        elif match := SLOT.match(text, at):
            nodes.append(read_slot(match[1]))
            at = match.end()
        else:
            end = re.compile(r"[{}|<]" if stop else r"[{}<]").search(text, at + 1)
            nodes.append(text[at : end.start() if end else len(text)])
            at += len(nodes[-1])
    return tuple(nodes), at


def slots_of(option: Option) -> Iterable[Slot]:
    for node in option.nodes:
        if isinstance(node, Slot):
            yield node
        elif isinstance(node, tuple):
            for inner in node:
                yield from slots_of(inner)


# ---------------------------------------------------------------------------------------------- the grammar


@dataclass(frozen=True)
class Scope:
    """What one level of the grammar says: groups of entries and roles of fragments, by name."""

    groups: dict[str, tuple[Entry, ...]]
    roles: dict[str, tuple[Option, ...]]


@dataclass(frozen=True)
class Diagnosis:
    code: str
    sex: str
    ages: range
    weight: int
    chronic: bool
    home: tuple[str, ...]
    skips: frozenset[str]
    scopes: tuple[Scope, ...]
    scenes: tuple[Scope, ...]


@dataclass(frozen=True)
class Background:
    group: str
    ages: range
    chance: float
    sex: str


@dataclass(frozen=True)
class Grammar:
    diagnoses: dict[str, Diagnosis]
    background: tuple[Background, ...]
    skeletons: dict[str, list[list[Any]]]
    entries: dict[str, Entry]
    substances: dict[str, str]

    @property
    def fragments(self) -> set[Option]:
        """Every distinct template fragment of every role."""
        scopes = [scope for dx in self.diagnoses.values() for scope in (*dx.scopes, *dx.scenes)]
        return {option for scope in scopes for options in scope.roles.values() for option in options}


class Loader:
    """Reads the YAML files, without the held-out entries and without the templates that name one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        held_out = self.read("held_out")
        self.held_out = {(kind, name) for key, kind in HELD_OUT_KEYS.items() for name in held_out.get(key) or ()}
        self.held_out_names = {name for _, name in self.held_out}

    def read(self, name: str) -> dict[str, Any]:
        return yaml.safe_load((self.folder / f"{name}.yaml").read_text("utf-8"))

    def load(self) -> Grammar:
        common = self.read("common")
        paths = sorted((self.folder / "specialities").glob("*.yaml"))
        base = self.scope(common)
        diagnoses: dict[str, Diagnosis] = {}
        for path in paths:
            speciality = self.read(f"specialities/{path.stem}")
            chain = (self.scope(speciality), base)
            scenes = {name: self.scope(body) for name, body in speciality["scenes"].items()}
            for code, body in speciality["diagnoses"].items():
                diagnoses[code] = self.diagnosis(code, body, chain, scenes)
        background = tuple(
            Background(group, years(row.get("age")), row["chance"], row.get("sex", ""))
            for group, row in common["background"].items()
        )
        substances = {name: inn for inn, names in common["substances"].items() for name in names.split()}
        grammar = Grammar(diagnoses, background, common["skeletons"], self.entries, substances)
        check_names(grammar)
        return grammar

    def diagnosis(
        self, code: str, body: dict[str, Any], chain: tuple[Scope, ...], scenes: dict[str, Scope]
    ) -> Diagnosis:
        home = tuple(words(body.get("home")))
        return Diagnosis(
            code=code,
            sex=body.get("sex", ""),
            ages=years(body.get("age")),
            weight=body.get("weight", 10),
            chronic=body.get("chronic", False),
            home=home,
            skips=frozenset(words(body.get("skips"))),
            scopes=(with_drug(self.scope(body), home, chain), *chain),
            scenes=tuple(scenes[name] for name in words(body["scenes"])),
        )

    def scope(self, body: dict[str, Any]) -> Scope:
        groups: dict[str, tuple[Entry, ...]] = {}
        for key, kind in KINDS.items():
            for name, specs in (body.get(key) or {}).items():
                entries = [read_entry(kind, spec) for spec in specs.split(";") if spec.strip()]
                groups[name] = tuple(entry for entry in entries if self.keep(entry))
        roles = {
            name: tuple(option for option in map(parse, lines.splitlines()) if option.nodes and self.is_allowed(option))
            for name, lines in (body.get("say") or {}).items()
        }
        return Scope(groups, roles)

    def keep(self, entry: Entry) -> bool:
        if (entry.kind, entry.nominative) in self.held_out:
            return False
        if entry.kind:
            self.entries.setdefault(entry.nominative, entry)
        return True

    def is_allowed(self, option: Option) -> bool:
        return not any(slot.name in self.held_out_names for slot in slots_of(option))


def with_drug(scope: Scope, home: Sequence[str], chain: Sequence[Scope]) -> Scope:
    """`<drug>` is any home drug of a diagnosis that does not say otherwise."""
    groups = [level.groups[name] for name in home for level in (scope, *chain) if name in level.groups]
    if not groups or "drug" in scope.groups:
        return scope
    return Scope({"drug": tuple(itertools.chain(*groups)), **scope.groups}, scope.roles)


def words(text: str | None) -> list[str]:
    return text.split() if text else []


def years(bounds: Sequence[int] | None) -> range:
    low, high = bounds or (18, 95)
    return range(low, high + 1)


DIGITS = "0123456789"
NEAREST = {"anaesthesia"}  # what one speciality says of it would be wrong in another
BUILTINS = frozenset({"age", "dose", "homelist"})
NUMBER = re.compile(r"(\d+(?:,\d+)?)-(\d+(?:,\d+)?)(?:/(\d+))?")


def check_names(grammar: Grammar) -> None:
    """A slot that nothing fills must fail at load, not in the one note of a thousand that draws it."""
    wrong = {
        f"{dx.code}: <{slot.name}.{slot.case}>"
        for dx in grammar.diagnoses.values()
        for scene in dx.scenes
        for option in options_of((scene, *dx.scopes))
        for slot in slots_of(option)
        if not is_known(grammar, (scene, *dx.scopes), slot)
    }
    if wrong:
        raise GrammarError("Nothing is called:\n" + "\n".join(sorted(wrong)))


def options_of(chain: Iterable[Scope]) -> Iterable[Option]:
    return (option for scope in chain for options in scope.roles.values() for option in options)


def is_known(grammar: Grammar, chain: Sequence[Scope], slot: Slot) -> bool:
    if slot.case not in {"", "nom", "gen", "par", *SUFFIXES} and not slot.case.startswith("ravi"):
        return False
    if NUMBER.fullmatch(slot.name) or slot.name in BUILTINS or slot.name in grammar.entries:
        return True
    return any(slot.name in scope.roles or slot.name.rstrip(DIGITS) in scope.groups for scope in chain)


# ---------------------------------------------------------------------------------------------- patients


@dataclass
class Patient:
    patient_id: str
    sex: str
    born: date
    main: Diagnosis
    background: frozenset[str]
    home: dict[str, Entry] = field(default_factory=dict)

    def age(self, day: date) -> int:
        return (day - self.born).days // 365

    def meets(self, condition: str, day: date, at_home: bool) -> bool:
        """`naine`, `60+`, `-14`, `home`: several joined by `&`, `!` negates."""
        return not condition or all(self.meets_one(part, day, at_home) for part in condition.split("&"))

    def meets_one(self, part: str, day: date, at_home: bool) -> bool:
        if part.startswith("!"):
            return not self.meets_one(part[1:], day, at_home)
        if part == "home":
            return at_home
        if part in ("naine", "mees"):
            return part == self.sex
        if part.endswith("+"):
            return self.age(day) >= int(part[:-1])
        return self.age(day) <= int(part.removeprefix("-"))


# ---------------------------------------------------------------------------------------------- one note


@dataclass
class Note:
    """The draw of one note: what it has named so far decides what it may name next."""

    rng: random.Random
    grammar: Grammar
    patient: Patient
    dx: Diagnosis
    day: date
    chain: tuple[Scope, ...]
    bound: dict[str, Entry] = field(default_factory=dict)
    named: list[Entry] = field(default_factory=list)
    said: set[Option] = field(default_factory=set)
    item_at: int = 0  # where in `named` the part that is being written begins

    def __post_init__(self) -> None:
        self.home_groups = self.groups_at_home()

    def groups_at_home(self) -> list[str]:
        age = self.patient.age(self.day)
        background = [
            row.group
            for row in self.grammar.background
            if row.group in self.patient.background and age in row.ages and row.group not in self.dx.skips
        ]
        return [*self.dx.home, *background]

    def holds(self, condition: str) -> bool:
        return self.patient.meets(condition, self.day, bool(self.home_groups))

    def write(self, skeleton: Sequence[Any]) -> str:
        return " ".join(filter(None, (self.item(part).strip() for part in self.order(skeleton))))

    def order(self, skeleton: Sequence[Any]) -> Iterable[str]:
        """The parts of an inner list come in any order; a part with `~` may be left out."""
        for part in skeleton:
            parts = self.rng.sample(part, len(part)) if isinstance(part, list) else [part]
            yield from (p.rstrip("~") for p in parts if not p.endswith("~") or self.rng.random() < 0.5)

    def item(self, part: str) -> str:
        self.item_at = len(self.named)
        option = parse(f"<{part}>" if part.isalpha() else part)
        return capitalised(self.expand(option.nodes)) if self.holds(option.condition) else ""

    def expand(self, nodes: Iterable[Any]) -> str:
        return "".join(self.node(node) for node in nodes)

    def node(self, node: Any) -> str:
        if isinstance(node, str):
            return node
        if isinstance(node, Slot):
            return self.fill(node)
        return self.expand(self.choose(node).nodes)

    def choose(self, options: Sequence[Option]) -> Option:
        fitting = [option for option in options if self.holds(option.condition)]
        if not fitting:
            raise DeadEnd
        return self.rng.choice(fitting)

    def fill(self, slot: Slot) -> str:
        if match := NUMBER.fullmatch(slot.name):
            return self.number(*match.groups())
        if slot.name == "age":
            return str(self.patient.age(self.day))
        if slot.name == "dose":
            return self.dose(self.named[-1])
        if slot.name == "homelist":
            return self.home_list()
        if any(slot.name in scope.roles for scope in self.chain):
            return self.fragment(slot.name)
        return self.mark(self.entry(slot.name), slot)

    def number(self, low: str, high: str, step: str | None) -> str:
        if "," in low:
            return f"{self.rng.uniform(decimal(low), decimal(high)):.1f}".replace(".", ",")
        return str(self.rng.randrange(int(low), int(high) + 1, int(step or 1)))

    def fragment(self, role: str) -> str:
        """Mostly from the most specific level that knows the role; no fragment comes twice in one note."""
        levels = [scope.roles[role] for scope in self.chain if role in scope.roles]
        if role in NEAREST:
            del levels[1:]
        for depth, options in enumerate(levels, start=1):
            fresh = [option for option in options if option not in self.said and self.holds(option.condition)]
            if fresh and (depth == len(levels) or self.rng.random() < 0.72):
                option = self.rng.choice(fresh)
                self.said.add(option)
                return self.expand(option.nodes)
        raise DeadEnd

    def entry(self, name: str) -> Entry:
        if name in self.bound:
            return self.bound[name]
        group = name.rstrip(DIGITS)
        for scope in self.chain:
            if group in scope.groups:
                entry = self.pick(group, scope.groups[group])
                if group != name:
                    self.bound[name] = entry
                return entry
        return self.grammar.entries[name]

    def pick(self, group: str, entries: Sequence[Entry]) -> Entry:
        """The patient's own drug of a group of home drugs, once in each part, else one new to the note."""
        own = self.patient.home.get(group)
        if own in entries and self.substance(own) not in map(self.substance, self.named[self.item_at :]):
            return own
        named = {self.substance(entry) for entry in self.named}
        fresh = [e for e in entries if self.substance(e) not in named and self.holds(e.condition)]
        if not fresh:
            raise DeadEnd
        entry = self.rng.choice(fresh)
        if group in self.home_groups:
            self.patient.home.setdefault(group, entry)
        return entry

    def substance(self, entry: Entry) -> str:
        return self.grammar.substances.get(entry.nominative, entry.nominative)

    def mark(self, entry: Entry, slot: Slot) -> str:
        self.named.append(entry)
        surface = slot.surface or entry.form(slot.case)
        return f"{OPEN[entry.kind]}{surface}{CLOSE}" if entry.kind else surface

    def dose(self, entry: Entry) -> str:
        return "" if self.patient.age(self.day) < 15 else self.expand(parse(entry.dose).nodes)

    def home_list(self) -> str:
        """One to five drugs of the patient, with doses throughout or not at all."""
        wanted = self.rng.sample(self.home_groups, min(len(self.home_groups), self.rng.randint(1, 5)))
        with_dose, drugs = self.rng.random() < 0.75, []
        for group in wanted:
            try:
                drug = self.mark(self.patient.home.get(group) or self.entry(group), Slot(group))
            except DeadEnd:
                continue
            drugs.append(f"{drug} {self.dose(self.named[-1])}".strip() if with_dose else drug)
        if not drugs:
            raise DeadEnd
        return self.rng.choice([", ", ", ", "; "]).join(drugs)


def decimal(text: str) -> float:
    return float(text.replace(",", "."))


def capitalised(text: str) -> str:
    """A fragment that begins with a slot gets a capital letter, and so does a span after a stop."""
    text = re.sub(r"^([\x01\x02]?)([a-zõäöüšž])", lambda m: m[1] + m[2].upper(), text)
    return re.sub(r"(?<=[^\d.][.!?] )([\x01\x02])([a-zõäöüšž])", lambda m: m[1] + m[2].upper(), text)


# ---------------------------------------------------------------------------------------------- noise


def tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,;:)])", r"\1", text)
    return re.sub(r"([.,;:])(?:\s*[.,;])+", r"\1", text)


def misspell(rng: random.Random, text: str) -> str:
    """One word loses, doubles or swaps a letter after its first two."""
    places = [match.span() for match in re.finditer(r"[A-Za-zõäöüÕÄÖÜšž]{6,}", text)]
    if not places:
        return text
    start, end = rng.choice(places)
    at, kind = rng.randrange(start + 2, end - 1), rng.choice(("lose", "double", "swap"))
    if kind == "lose":
        return text[:at] + text[at + 1 :]
    if kind == "double":
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def glue(rng: random.Random, text: str) -> str:
    stops = [match.start() for match in re.finditer(r"(?<=[a-zõäöü\x03][.,]) (?=[A-ZÕÄÖÜa-zõäöü\x01\x02])", text)]
    return text if not stops else text[: (at := rng.choice(stops))] + text[at + 1 :]


def recase(rng: random.Random, text: str) -> str:
    """A hurried writer: no capitals at sentence starts, or a name in capitals or small letters."""
    style = rng.choice(("starts", "span", "span"))
    if style == "starts":
        return re.sub(r"(^|[.!?] )([\x01\x02]?)([A-ZÕÄÖÜ])(?=[a-zõäöü])", lambda m: m[1] + m[2] + m[3].lower(), text)
    spans = list(re.finditer(r"(?<=[\x01\x02])[^\x03]+", text))
    if not spans:
        return text
    span = rng.choice(spans)
    name = span[0].lower() if span[0] != span[0].lower() else rng.choice((span[0].capitalize(), span[0].upper()))
    return text[: span.start()] + name + text[span.end() :]


NOISE = ((0.3, misspell), (0.08, misspell), (0.1, glue), (0.14, recase))


def roughen(rng: random.Random, text: str) -> str:
    for chance, change in NOISE:
        if rng.random() < chance:
            text = change(rng, text)
    return text.rstrip(".") if rng.random() < 0.15 else text


def unmark(marked: str) -> tuple[str, list[tuple[int, int, str]]]:
    """The stored text and its spans, from a text with marks."""
    text, spans, start, kind = "", [], 0, ""
    for piece in re.split(r"([\x01-\x03])", marked):
        if piece in LABELS:
            start, kind = len(text), LABELS[piece]
        elif piece == CLOSE:
            spans.append((start, len(text), kind))
        else:
            text += piece
    return text, spans


# ---------------------------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Record:
    fields: dict[str, str]
    spans: list[tuple[int, int, str]]
    entries: tuple[Entry, ...]

    def label_line(self) -> str:
        line = {"id": self.fields["record_id"], "text": self.fields["text"], "label": self.spans}
        return json.dumps(line, ensure_ascii=False) + "\n"


class Corpus:
    """Draws patients and their notes until there are enough."""

    def __init__(self, grammar: Grammar, seed: int = SEED) -> None:
        self.grammar = grammar
        self.rng = random.Random(seed)
        self.texts: set[str] = set()

    def records(self) -> list[Record]:
        counts = self.note_counts()
        drawn = [rec for number, count in enumerate(counts, start=1) for rec in self.patient_records(number, count)]
        return [
            Record({**record.fields, "record_id": f"R{number:05}"}, record.spans, record.entries)
            for number, record in enumerate(drawn, start=1)
        ]

    def note_counts(self) -> list[int]:
        counts = [self.rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6)) for _ in range(PATIENTS)]
        while (missing := NOTES - sum(counts)) != 0:
            at, step = self.rng.randrange(PATIENTS), 1 if missing > 0 else -1
            if 1 <= counts[at] + step <= 8:
                counts[at] += step
        return counts

    def patient(self, number: int) -> Patient:
        diagnoses = list(self.grammar.diagnoses.values())
        main = self.rng.choices(diagnoses, [dx.weight for dx in diagnoses])[0]
        sex = main.sex or self.rng.choice(("naine", "mees"))
        age = round(self.rng.triangular(main.ages[0], main.ages[-1]))
        day = EPOCH + timedelta(self.rng.randrange((LAST_DAY - EPOCH).days))
        born = day - timedelta(age * 365 + self.rng.randrange(1, 364))
        rows = [row for row in self.grammar.background if row.sex in ("", sex)]
        background = frozenset(row.group for row in rows if self.rng.random() < row.chance)
        return Patient(f"P{number:04}", sex, born, main, background)

    def patient_records(self, number: int, count: int) -> list[Record]:
        patient = self.patient(number)
        day = patient.born + timedelta(self.first_age_days(patient))
        dx, records = patient.main, []
        for _ in range(count):
            records.append(self.record(patient, dx, day))
            dx = self.next_diagnosis(patient, dx, day)
            day = min(LAST_DAY, day + timedelta(self.rng.choice((1, 3, 12, 40, 90, 180, 365, 500))))
            if patient.age(day) not in dx.ages:
                dx = patient.main
        return records

    def first_age_days(self, patient: Patient) -> int:
        """The first note lies in the years covered, at an age at which the main diagnosis occurs."""
        low = max(EPOCH, patient.born + timedelta(patient.main.ages[0] * 365 + 1))
        high = min(LAST_DAY, patient.born + timedelta((patient.main.ages[-1] + 1) * 365 - 1))
        return (low - patient.born).days + self.rng.randrange(max(1, (high - low).days // 2))

    def next_diagnosis(self, patient: Patient, dx: Diagnosis, day: date) -> Diagnosis:
        """A chronic disease goes on; an acute one is soon over and something else may follow."""
        if self.rng.random() < (0.85 if dx.chronic else 0.65):
            return dx
        fitting = [
            d for d in self.grammar.diagnoses.values() if d.sex in ("", patient.sex) and self.fits(d, patient, day)
        ]
        others = [d for d in fitting if d.code[0] != dx.code[0]]
        return self.rng.choices(others, [d.weight for d in others])[0] if others else dx

    def fits(self, dx: Diagnosis, patient: Patient, day: date) -> bool:
        return patient.age(day) in dx.ages and patient.age(day) + 3 in dx.ages

    def record(self, patient: Patient, dx: Diagnosis, day: date) -> Record:
        for _ in range(500):
            genre = self.rng.choices(("anamnees", "protseduur"), (0.6, 0.4))[0]
            try:
                text, spans, named = self.draw(patient, dx, day, genre)
            except DeadEnd:
                continue
            if len(text.split()) in WORDS and text not in self.texts:
                self.texts.add(text)
                values = (
                    "",
                    patient.patient_id,
                    day.isoformat(),
                    genre,
                    str(patient.age(day) // 10),
                    patient.sex,
                )
                fields = dict(zip(FIELDS, (*values, dx.code, text), strict=True))
                return Record(fields, spans, named)
        raise GrammarError(f"{dx.code}: no note fits {patient.patient_id}")

    def draw(
        self, patient: Patient, dx: Diagnosis, day: date, genre: str
    ) -> tuple[str, list[tuple[int, int, str]], tuple[Entry, ...]]:
        scene = (self.rng.choice(dx.scenes),) if genre == "protseduur" else ()
        note = Note(self.rng, self.grammar, patient, dx, day, (*scene, *dx.scopes))
        marked = tidy(note.write(self.rng.choice(self.grammar.skeletons[genre])))
        text, spans = unmark(roughen(self.rng, marked))
        return text, spans, tuple(entry for entry in note.named if entry.kind)


def lemma_counts(records: Iterable[Record]) -> dict[str, Counter[str]]:
    """How often each nominative occurs, by kind."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in OPEN}
    for record in records:
        for entry in record.entries:
            counts[entry.kind][entry.nominative] += 1
    return counts


def build(folder: Path = GRAMMAR) -> list[Record]:
    return Corpus(Loader(folder).load()).records()


def write(records: Sequence[Record], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(record.fields for record in records)
    with (folder / "spans.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(record.label_line() for record in records)


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0]) if arguments else RECORDS
    write(build(), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
