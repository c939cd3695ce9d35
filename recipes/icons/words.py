"""Names, synonyms and weights: what people call the things in the images."""

# Emojibase's subgroup: (kind, weight of its images, what all of them are called besides)
SUBGROUPS = {
    **{
        f"face-{name}": ("face", 0.3, ("smiley", "emoji", "face"))
        for name in (
            *("smiling", "affection", "tongue", "hand", "neutral-skeptical", "sleepy", "unwell"),
            *("hat", "glasses", "concerned", "negative"),
        )
    },
    "face-costume": ("creature", 1.2, ()),
    "cat-face": ("face", 0.3, ("cat",)),
    "monkey-face": ("face", 0.5, ("monkey",)),
    "heart": ("symbol", 0.5, ("heart",)),
    "emotion": ("symbol", 0.2, ()),
    "hand-fingers-open": ("hand", 0.25, ("hand",)),
    "hand-fingers-partial": ("hand", 0.25, ("hand",)),
    "hand-single-finger": ("hand", 0.2, ("hand",)),
    "hand-fingers-closed": ("hand", 0.3, ("hand",)),
    "hands": ("hand", 0.3, ("hands",)),
    "hand-prop": ("hand", 0.3, ()),
    "body-parts": ("object", 0.5, ()),
    "person": ("person", 1.0, ("person",)),
    "person-gesture": ("person", 0.15, ("person",)),
    "person-role": ("person", 0.8, ("person",)),
    "person-fantasy": ("person", 0.8, ()),
    "person-activity": ("person", 0.3, ("person",)),
    "person-sport": ("person", 0.5, ("person",)),
    "person-resting": ("person", 0.3, ("person",)),
    "family": ("people", 0.25, ("people",)),
    "person-symbol": ("symbol", 0.15, ()),
    "animal-mammal": ("animal", 2.0, ("animal",)),
    "animal-bird": ("animal", 2.0, ("bird", "animal")),
    "animal-amphibian": ("animal", 2.0, ("animal",)),
    "animal-reptile": ("animal", 2.0, ("reptile", "animal")),
    "animal-marine": ("animal", 1.7, ("sea animal", "animal")),
    "animal-bug": ("animal", 1.3, ("insect", "bug")),
    "plant-flower": ("plant", 1.5, ("flower", "plant")),
    "plant-other": ("plant", 1.3, ("plant",)),
    "food-fruit": ("food", 1.7, ("fruit", "food")),
    "food-vegetable": ("food", 1.3, ("vegetable", "food")),
    "food-prepared": ("food", 1.4, ("food", "meal")),
    "food-asian": ("food", 0.9, ("food",)),
    "food-sweet": ("food", 1.5, ("dessert", "food")),
    "drink": ("food", 1.2, ("drink",)),
    "dishware": ("object", 0.8, ()),
    "place-map": ("object", 0.8, ()),
    "place-geographic": ("scene", 1.4, ("landscape",)),
    "place-building": ("building", 1.2, ("building",)),
    "place-religious": ("building", 0.6, ("building",)),
    "place-other": ("scene", 0.8, ()),
    "transport-ground": ("vehicle", 1.4, ("vehicle",)),
    "transport-water": ("vehicle", 1.4, ("vehicle",)),
    "transport-air": ("vehicle", 1.4, ("vehicle",)),
    "hotel": ("object", 0.6, ()),
    "time": ("object", 0.8, ("clock",)),
    "sky-weather": ("sky", 1.1, ()),
    "event": ("object", 1.0, ()),
    "award-medal": ("object", 0.7, ()),
    "sport": ("object", 0.9, ()),
    "game": ("object", 0.8, ()),
    "arts-crafts": ("object", 0.8, ()),
    "clothing": ("clothing", 1.0, ()),
    "sound": ("object", 0.3, ()),
    "music": ("object", 0.6, ()),
    "musical-instrument": ("object", 1.3, ("musical instrument", "instrument")),
    "phone": ("object", 0.8, ()),
    "computer": ("object", 0.8, ()),
    "light-video": ("object", 0.8, ()),
    "book-paper": ("object", 0.6, ()),
    "money": ("object", 0.6, ()),
    "mail": ("object", 0.3, ()),
    "writing": ("object", 0.8, ()),
    "office": ("object", 0.35, ()),
    "lock": ("object", 0.6, ()),
    "tool": ("object", 0.9, ("tool",)),
    "science": ("object", 0.8, ()),
    "medical": ("object", 0.7, ()),
    "household": ("object", 0.9, ()),
    "other-object": ("object", 0.4, ()),
    "religion": ("symbol", 0.1, ("symbol",)),
    "flag": ("object", 0.5, ("flag",)),
    "geometric": ("symbol", 0.6, ("shape",)),
}

OVERRIDES = {  # labels whose subgroup says too little
    "skull": ("object", 1.2, ()),
    "skull and crossbones": ("object", 0.8, ("skull",)),
    "bone": ("object", 1.0, ()),
    "brain": ("object", 1.0, ()),
    "eye": ("object", 0.8, ()),
    "alarm clock": ("object", 1.2, ("clock",)),
    "potted plant": ("plant", 1.5, ("plant",)),
    "rose": ("plant", 2.0, ("flower",)),
    "mushroom": ("plant", 1.5, ()),
    "red heart": ("symbol", 1.5, ("heart",)),
    "spider web": ("object", 0.8, ()),
    "feather": ("object", 1.0, ()),
    "cloud": ("sky", 2.0, ()),
    "house": ("building", 2.5, ("building",)),
    "castle": ("building", 2.5, ("building",)),
    "traffic light": ("object", 1.0, ()),
    "vertical traffic light": ("object", 1.0, ()),
    "stop sign": ("object", 0.8, ("sign",)),
    "anchor": ("object", 1.0, ()),
    "fuel pump": ("object", 0.5, ()),
    "oil drum": ("object", 0.5, ()),
    "railway track": ("scene", 0.5, ()),
    "police car light": ("object", 0.4, ()),
    "wheel": ("object", 0.7, ()),
    "ring buoy": ("object", 0.6, ()),
    "parachute": ("object", 0.8, ()),
}

# Labels that are left out, or weigh less than their subgroup.
DROPPED = """
speaking head; bust in silhouette; busts in silhouette; dotted line face; ZZZ; anger symbol; hole; motorway
construction; bus stop; seat; station; chart increasing with yen; yen banknote; pound banknote
medical symbol; left speech bubble; right anger bubble; eye in speech bubble; bell with slash; muted speaker
speaker low volume; speaker medium volume; level slider; card index dividers; pager; trackball; low battery
incoming envelope; envelope with arrow; outbox tray; inbox tray; e-mail; mobile phone with arrow
closed mailbox with lowered flag; open mailbox with lowered flag; open mailbox with raised flag
bookmark tabs; page with curl; spiral notepad; card index; linked paperclips; radio button; white square button
black square button; diamond with a dot; map of Japan; Japanese symbol for beginner; joker; placard
globe with meridians; middle finger; input symbols; identification card; foggy; black medium square
white medium square; black medium-small square; white medium-small square; black small square; white small square
small orange diamond; small blue diamond; love hotel; kiss; couple with heart; moon viewing ceremony
carp streamer; pine decoration; oden; fish cake with swirl; dango; rice cracker; fondue; mate; funeral urn
nazar amulet; hamsa; kaaba; landslide; white cane; part alternation mark; horizontal traffic light
transgender flag; locked with pen; flat shoe; goal net; performing arts

""".replace("\n", ";")
DROPPED = {label.strip() for label in DROPPED.split(";") if label.strip()}
RARE = ("o’clock", "-thirty", "heart-eyes", "gesturing", "tipping", "pouting", "facepalming", "getting", "levitating")
