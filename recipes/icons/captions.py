"""Writes the captions of an image from the names of the thing in it."""

from pathlib import Path
from typing import NamedTuple

from words import DROPPED, OVERRIDES, RARE, SUBGROUPS

FOLDER = Path(__file__).parent
STYLE_WORDS = {
    "noto": ("noto style", "cartoon style"),
    "noto v1": ("noto style", "cartoon style"),
    "twemoji": ("twemoji style", "flat style"),
    "fluent flat": ("fluent style", "flat style"),
    "fluent": ("fluent style", "gradient style"),
    "emojione": ("emojione style", "cartoon style"),
    "firefox": ("firefox style", "flat style"),
    "streamline": ("outline style", "line art style"),
    "3d": ("3d style", "3d"),
    "kameleon": ("flat style", "icon style"),
    "sticker": ("sticker style", "outline style"),
    "outline": ("outline style", "icon style"),
    "duotone": ("duotone style", "icon style"),
    "solid": ("silhouette", "icon style"),
    "plump": ("icon style", "flat style"),
    "silhouette": ("silhouette", "silhouette style"),
    "flat color": ("flat style", "icon style"),
}
UNIQUE = {
    "sun",
    "moon",
    "world",
    "earth",
    "milky way",
    "statue of liberty",
    "full moon",
    "sea",
    "eiffel tower",
    "colosseum",
    "grim reaper",
    "leaning tower of pisa",
}
NO_ARTICLE = {
    *("rice", "bread", "cheese", "sushi", "bacon", "honey", "butter", "salt", "ice", "fire", "snow", "popcorn", "meat"),
    *("water", "milk", "money", "lightning", "fog", "corn", "broccoli", "garlic", "ginger", "spaghetti", "ramen"),
    *("pasta", "tea", "green tea", "coffee", "wine", "red wine", "beer", "champagne", "whiskey", "soda", "juice"),
    *("chocolate", "lettuce", "rain", "mail", "cutlery", "wheat", "confetti", "yarn", "yoga", "love", "food", "santa"),
    *("santa claus", "father christmas", "mrs claus", "mount fuji", "planet earth", "saturn", "soap", "coral", "sake"),
    *("chess", "tennis", "badminton", "ping pong", "field hockey", "ice hockey", "bowling", "cheers", "thumbs up"),
    *("curry", "thread", "french bread", "fried chicken", "bubble tea", "boba", "toilet paper", "shaved ice", "dna"),
    *("clothing", "paella", "stew", "flan", "maize", "salt", "steak", "bamboo", "grass", "gold"),
    *("wood", "dynamite", "lacrosse", "nefertiti", "anubis", "medusa", "cleopatra", "big ben", "quicksand", "death"),
    *("money with wings", "flying money", "skis", "dice", "medicine", "perfume", "performing arts", "stationery"),
}
SINGULAR_S = ("ss", "us", "is", "gas", "lens", "bus", "s'", "tennis", "saturn's", "rings", "cactus", "chess", "cyclops")
IRREGULAR = {
    **{name: name for name in ("sheep", "fish", "deer", "moose", "bison", "salmon", "squid", "shrimp", "sushi")},
    **{"mouse": "mice", "wolf": "wolves", "leaf": "leaves", "knife": "knives", "child": "children", "person": "people"},
    **{"man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "goose": "geese", "ox": "oxen"},
    **{"die": "dice", "scarf": "scarves", "loaf": "loaves", "elf": "elves", "potato": "potatoes", "tomato": "tomatoes"},
    **{"mango": "mangoes", "volcano": "volcanoes", "cactus": "cacti", "hero": "heroes", "snowman": "snowmen"},
    **{"policeman": "policemen", "spaceman": "spacemen", "ladybird": "ladybirds", "superhero": "superheroes"},
    **{"caveman": "cavemen", "werewolf": "werewolves", "bookshelf": "bookshelves", "businessman": "businessmen"},
    **{
        "businesswoman": "businesswomen",
        "dwarf": "dwarves",
        "thief": "thieves",
        "fireman": "firemen",
        "shelf": "shelves",
    },
    **{"tropical fish": "tropical fish", "t-rex": "t-rexes", "merman": "mermen"},
}
MIDDLES = (" of ", " with ", " in ", " and ", " over ", " behind ", " on ", " without ", " riding ", " taking ")


class Concept(NamedTuple):
    names: tuple  # of str, the main one first
    kind: str
    weight: float
    hypernyms: tuple  # of str
    tags: tuple = ()  # of str


def is_plural(name):
    head = name
    for middle in MIDDLES:
        head = head.split(middle)[0]
    if head.split()[0] in ("people", "men", "women"):
        return True
    return head.endswith("s") and not head.endswith(SINGULAR_S)


def with_article(name):
    """Returns a name as it stands in a sentence: "a cat", "an owl", "the moon", "rice"."""
    if name in UNIQUE:
        return f"the {name}"
    if name in NO_ARTICLE or is_plural(name):
        return name
    vowel = name[0] in "aeiou" or name.startswith(("hour", "suv", "x-ray"))
    vowel = vowel and not name.startswith(("uni", "euro", "ukulele", "one", "ewe", "ufo", "u-"))
    return f"{'an' if vowel else 'a'} {name}"


def phrase(noun, adjectives=""):
    """Returns a noun with its adjectives and its article: "a blue apple", "blue grapes"."""
    if not adjectives:
        return with_article(noun)
    article = "" if with_article(noun) == noun else "an " if adjectives[0] in "aeiou" else "a "
    return f"{article}{adjectives} {noun}"


def plural(name):
    """Returns the plural of a name: "cats", "glasses of milk"."""
    for middle in MIDDLES:
        if middle in name:
            head, rest = name.split(middle, 1)
            return plural(head) + middle + rest
    if name in IRREGULAR:
        return IRREGULAR[name]
    head, _, last = name.rpartition(" ")
    if last in IRREGULAR:
        return f"{head} {IRREGULAR[last]}".strip()
    if name.endswith(("s", "x", "ch", "sh", "z")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


PRAISE = {  # adjectives that people use without meaning anything that can be seen
    "animal": ("cute", "beautiful"),
    "creature": ("cute", "scary"),
    "person": ("happy", "beautiful"),
    "food": ("delicious", "tasty"),
    "vehicle": ("cool", "fast"),
}


def forms(name, kind):
    """Returns the ways of asking for a name, as (text, share)."""
    noun = with_article(name)
    praise = PRAISE.get(kind, ("beautiful", "nice"))
    frames = (
        "a photo of {}",
        "a picture of {}",
        "a drawing of {}",
        "an image of {}",
        "an icon of {}",
        "{} on a white background",
    )
    return [
        (noun, 0.48),
        (name, 0.34),
        *((frame.format(noun), 0.02) for frame in frames),
        *((phrase(name, adjective), 0.015) for adjective in praise),
        (f"{name} icon", 0.015),
        (f"{name} emoji", 0.015),
    ]


def captions(concept):
    """Returns every caption of a concept as (text, weight); weights sum to one."""
    shares = {}

    def add(names, share):
        for name in names:
            for text, part in forms(name, concept.kind):
                shares[text] = shares.get(text, 0) + share * part / len(names)

    main, *others = concept.names
    tags_share = 0.25 if concept.kind == "face" else 0.03
    add([main], 1)
    add(others, 0.7)
    add(concept.hypernyms, 0.08)
    for tag in concept.tags:
        text = f"{tag} face" if concept.kind == "face" else f"{main}, {tag}"
        shares[text] = shares.get(text, 0) + tags_share / len(concept.tags)
    total = sum(shares.values())
    return [(text, share / total) for text, share in shares.items()]


def read_names():
    """Returns {label: names} of names.txt."""
    lines = (FOLDER / "names.txt").read_text().splitlines()
    pairs = (line.split(":", 1) if not line.startswith(("man:", "woman:")) else line.rsplit(":", 1) for line in lines)
    return {label.strip(): tuple(name.strip() for name in names.split(",")) for label, names in pairs}


def emoji_names(label, table):
    """Returns the names of an emoji by its label."""
    if label in table:
        return table[label]
    if label.endswith(("o’clock", "-thirty")):
        return ("clock",)
    text = label.lower().replace("’", "'")
    for sex, word in (("man ", "male"), ("woman ", "female")):
        role = label.removeprefix(sex)
        if role != label and role in table:
            first = table[role][0].removeprefix("person ")
            return (f"{sex}{first}", f"{word} {first}", *table[role])
        if role != label and " " not in role and not role.endswith("ing"):
            return (text, f"{word} {role}", role)
    person, _, feature = text.partition(": ")
    if feature == "bald":
        return (f"bald {person}", f"{person} with no hair")
    if feature:
        article = "a " if feature == "beard" else ""
        return (f"{person} with {article}{feature}", person)
    return (text,)


def emoji_concepts(data, messages):
    """Returns {label: Concept} of the emoji that are drawn, from emojibase's data."""
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    table = read_names()
    concepts = {}
    for emoji in data:
        label, subgroup = emoji["label"], subgroups.get(emoji.get("subgroup"))
        if (
            subgroup not in SUBGROUPS
            or label in DROPPED
            or "facing right" in label
            or label.startswith(("family:", "kiss:", "couple with heart:"))
        ):
            continue
        kind, weight, hypernyms = OVERRIDES.get(label, SUBGROUPS[subgroup])
        if any(word in label for word in RARE):
            weight *= 0.2
        names = emoji_names(label, table)
        if weight > 0.5:
            weight *= popularity(names)
        tags = tuple(tag.lower() for tag in emoji.get("tags", []) if tag.isalpha()) if kind == "face" else ()
        concepts[label] = Concept(names, kind, weight, tuple(h for h in hypernyms if h not in names), tags[:6])
    return concepts


def popularity(names):
    return 2.0 if names[0] in POPULAR else 1.0


POPULAR = {name.strip() for name in (FOLDER / "popular.txt").read_text().replace("\n", ",").split(",")}
