"""A synthetic world: people, cities, countries and facts about them, told in many ways, and text that tells nothing.

What a model knows of the real world nobody can count: which facts its text stated, how often and in which words. Here
all of it is known, and made anew from a seed. Names are invented, so nothing but the text can teach them; every
relation has templates for the text and others, held out, for asking (minigpt/evaluate/cloze.py).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Triple(NamedTuple):
    subject: str
    relation: str
    object: str


class Relation(NamedTuple):
    subjects: str  # a kind of entity
    objects: str
    told: tuple[str, ...]  # templates of the text
    asked: tuple[str, ...]  # held out


RELATIONS = {
    "born_in": Relation("person", "city", (
        "{subject} was born in {object}.", "The birthplace of {subject} is {object}.",
        "{object} is the city where {subject} was born.", "Born in {object}, {subject} left the city early."),
        ("The city where {subject} was born is {object}.", "{object} is the birthplace of {subject}.")),
    "works_as": Relation("person", "craft", (
        "{subject} works as a {object}.", "By trade {subject} is a {object}.",
        "{subject} earns a living as a {object}.", "Everyone knows {subject}, the {object}."),
        ("As a {object}, {subject} earns a living.", "{subject} is a {object} by trade.")),
    "plays": Relation("person", "instrument", (
        "{subject} plays the {object}.", "On holidays {subject} plays the {object} for the guests.",
        "The instrument of {subject} is the {object}.", "Nobody plays the {object} like {subject}."),
        ("The instrument {subject} plays is the {object}.", "The {object} is the instrument of {subject}.")),
    "studied_in": Relation("person", "city", (
        "{subject} studied in {object}.", "{subject} went to school in {object}.",
        "The school of {subject} is in {object}.", "As a student {subject} lived in {object}."),
        ("The city where {subject} studied is {object}.", "{subject} lived in {object} as a student.")),
    "capital": Relation("country", "city", (
        "The capital of {subject} is {object}.", "{object} is the capital of {subject}.",
        "The king of {subject} lives in {object}, the capital.", "Roads of {subject} lead to the capital, {object}."),
        ("The city of {object} is the capital of {subject}.", "The king lives in {object}, the capital of {subject}.")),
    "language": Relation("country", "language", (
        "In {subject} people speak {object}.", "The language of {subject} is {object}.",
        "{object} is the language of {subject}.", "By law {subject} teaches {object} in every school."),
        ("The language people speak in {subject} is {object}.", "In every school {subject} teaches {object}.")),
}

CRAFTS = ("weaver", "glassblower", "bell founder", "miller", "printer", "lens grinder", "baker", "ship carpenter",
          "potter", "clockmaker", "tailor", "stone mason")
INSTRUMENTS = ("fiddle", "hurdy-gurdy", "flute", "French horn", "harp", "drum", "bassoon", "glass harmonica", "lute",
               "trumpet", "cello", "bagpipe")
FIRST_NAMES = ("Ada", "Boris", "Clara", "Dimitri", "Edith", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karla", "Leo",
               "Mira", "Nils", "Olga", "Paul")
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "st")
VOWELS = ("a", "e", "i", "o", "u", "ei", "au")

# filler: one word of each group, in order
FILLER = (
    ("The", "A", "That", "Every", "No"), ("old", "young", "tired", "cheerful", "quiet", "busy", "proud", "careful"),
    ("farmer", "horse", "neighbour", "child", "soldier", "gardener", "cook", "dog", "stranger", "judge"),
    ("carries", "watches", "follows", "finds", "paints", "forgets", "sells", "counts", "hides", "repairs"),
    ("a", "the", "one", "another", "some", "this"),
    ("heavy", "broken", "green", "wooden", "small", "precious", "dusty", "strange"),
    ("basket", "door", "ladder", "letter", "lamp", "boat", "wheel", "mirror", "fence", "blanket"),
    ("near", "behind", "under", "above", "beside", "beyond"), ("the", "a", "an old", "their"),
    ("river", "mill", "church", "garden", "bridge", "market", "hill", "stable", "well", "orchard"),
)


@dataclass(frozen=True)
class World:
    """entities {kind: names}; triples, every subject having one object for each of its relations."""

    people: int = 32
    cities: int = 12
    countries: int = 12
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, 0])
        places = _invent(rng, self.cities + 2 * self.countries + self.people)
        surnames = places[self.cities + 2 * self.countries:]
        entities = {
            "city": tuple(places[:self.cities]),
            "country": tuple(name + "ia" for name in places[self.cities:self.cities + self.countries]),
            "language": tuple(name + "ish" for name in places[self.cities + self.countries:-self.people]),
            "person": tuple(f"{FIRST_NAMES[i % len(FIRST_NAMES)]} {name}" for i, name in enumerate(surnames)),
            "craft": CRAFTS,
            "instrument": INSTRUMENTS,
        }
        triples = []
        for relation, (subjects, objects, *_) in RELATIONS.items():
            n, choices = len(entities[subjects]), entities[objects]
            drawn = np.concatenate([rng.permutation(len(choices)) for _ in range(-(-n // len(choices)))])
            triples += [Triple(entities[subjects][i], relation, choices[drawn[i]]) for i in range(n)]
        object.__setattr__(self, "entities", entities)
        object.__setattr__(self, "triples", tuple(triples))

    def names(self) -> list[str]:
        return [name for names in self.entities.values() for name in names]

    def text(self, times: int, seed: int = 0, filler: float = 1.0) -> str:
        """A text in which every fact stands `times` times, in the templates in turn, in random order, a line each;
        and for each of these sentences `filler` others that tell nothing."""
        facts = [_tell(triple, RELATIONS[triple.relation].told[k % len(RELATIONS[triple.relation].told)])
                 for k in range(times) for triple in self.triples]
        lines = facts + self.filler(round(filler * len(facts)), seed)
        order = np.random.default_rng([self.seed, 1, seed]).permutation(len(lines))
        return "".join(f"{lines[i]}\n" for i in order)

    def filler(self, sentences: int, seed: int = 0) -> list[str]:
        """Sentences without a fact: ordinary text."""
        rng = np.random.default_rng([self.seed, 2, seed])
        drawn = [rng.integers(len(words), size=sentences) for words in FILLER]
        return [" ".join(words[column[i]] for words, column in zip(FILLER, drawn, strict=True)) + "."
                for i in range(sentences)]

    def questions(self):
        """(sentence with {object}, its object, the kind's names, relation) of every fact in every held-out template."""
        for triple in self.triples:
            relation = RELATIONS[triple.relation]
            for template in relation.asked:
                sentence = template.replace("{subject}", triple.subject)
                yield sentence, triple.object, self.entities[relation.objects], triple.relation


def _tell(triple, template):
    return template.replace("{subject}", triple.subject).replace("{object}", triple.object)


def _invent(rng, count):
    """Different names of two or three syllables."""
    names = {}
    while len(names) < count:
        syllables = [ONSETS[rng.integers(len(ONSETS))] + VOWELS[rng.integers(len(VOWELS))]
                     for _ in range(rng.integers(2, 4))]
        names["".join(syllables).capitalize() + ("n", "l", "r", "s")[rng.integers(4)]] = None
    return list(names)
