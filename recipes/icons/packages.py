"""Lists the npm packages that the bundled model "icons" learns from, and fetches them."""

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    name: str
    version: str
    licence: str  # of the images
    author: str
    sha256: str
    style: str | None = None

    @property
    def archive(self):
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "Miles Johnson",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    None,
)
EMOJI = (
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "Google",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "noto",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "Google",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "noto v1",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "Twitter",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "twemoji",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "Microsoft",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "fluent flat",
    ),
    Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "MIT",
        "Microsoft",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "fluent",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "CC-BY-4.0",
        "Emoji One",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "emojione",
    ),
    Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "Apache-2.0",
        "Mozilla",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "firefox",
    ),
    Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "CC-BY-4.0",
        "Streamline",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "streamline",
    ),
)
RASTERS = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "MIT",
    "Microsoft",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "3d",
)
ICONS = (
    Package(
        "@iconify-json/game-icons",
        "1.2.4",
        "CC-BY-3.0",
        "Game-icons.net",
        "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
        "silhouette",
    ),
    Package(
        "@iconify-json/ph",
        "1.2.2",
        "MIT",
        "Phosphor Icons",
        "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc",
        "duotone",
    ),
    Package(
        "@iconify-json/mdi",
        "1.2.3",
        "Apache-2.0",
        "Pictogrammers",
        "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac",
        "solid",
    ),
    Package(
        "@iconify-json/streamline-plump-color",
        "1.2.2",
        "CC-BY-4.0",
        "Streamline",
        "33ed8a9ebda9ed896125f1e01873105688d68d0b0c95ca1bcead5a41309afcf6",
        "plump",
    ),
    Package(
        "@iconify-json/streamline-kameleon-color",
        "1.2.2",
        "CC-BY-4.0",
        "Streamline",
        "5f972d986afb340d8a45d7a16e767f99f91fdd94db53e46a78c79847212aed7b",
        "kameleon",
    ),
    Package(
        "@iconify-json/streamline-stickies-color",
        "1.2.2",
        "CC-BY-4.0",
        "Streamline",
        "e96b8b2bbe1efde22272c420a75024b4b2c7e224ec1f323c93a421a07410971e",
        "sticker",
    ),
    Package(
        "@iconify-json/streamline-ultimate-color",
        "1.2.2",
        "CC-BY-4.0",
        "Streamline",
        "46133a11f3734bcef29066391d7edc141ed1d8056242ddfa1b5d36ce286420b6",
        "outline",
    ),
    Package(
        "@iconify-json/flat-color-icons",
        "1.2.3",
        "MIT",
        "Icons8",
        "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
        "flat color",
    ),
)
ALL = (LABELS, *EMOJI, RASTERS, *ICONS)


def fetch(package, folder):
    """Returns the path of a package's archive, fetched with `npm pack` if missing, its checksum verified."""
    path = Path(folder) / package.archive
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        specifier = f"{package.name}@{package.version}"
        subprocess.run(["npm", "pack", specifier, "--pack-destination", folder], check=True)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != package.sha256:
        raise ValueError(
            f"{path.name} is not the archive this recipe was written for. Expected sha256 "
            f"{package.sha256}; remove the file to fetch it again. Received: sha256={sha256}"
        )
    return path


def read_json(path, member):
    """Returns the parsed JSON file `member` of an archive."""
    with tarfile.open(path) as archive:
        return json.load(archive.extractfile(f"package/{member}"))


def read_icons(path):
    """Returns {name: (SVG body, view box)} of an Iconify package, its aliases included."""
    data = read_json(path, "icons.json")
    width, height = data.get("width", 16), data.get("height", 16)

    def entry(icon):
        box = [icon.get("left", 0), icon.get("top", 0), icon.get("width", width), icon.get("height", height)]
        return icon["body"], box

    icons = {name: entry(icon) for name, icon in data["icons"].items()}
    aliases = data.get("aliases", {}).items()
    plain = {
        name: icons[alias["parent"]] for name, alias in aliases if set(alias) == {"parent"} and alias["parent"] in icons
    }
    return plain | icons
