"""Builds the embedded emoji set: python scripts/emoji.py --out src/jepakit/data/sets/emoji32

Needs npm on the path and `pip install resvg-py==0.5.0 pillow numpy`. The SVG sets come from four pinned npm packages
through `npm pack`; each emoji is rasterised at 32 px on white. Left out: skin-tone variants, images that come out blank
(white glyphs) and exact repeats of an earlier image. The same input gives the same pixels and labels.

An identity is what is drawn, whatever the style and whatever the style calls it: names that share a Unicode code point,
an alias or the exact image (in the same group) are one identity, so a split by identity keeps an emoji on one side.
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

STYLES = {"noto": "1.2.9", "noto-v1": "1.2.5", "twemoji": "1.2.5", "fluent-emoji-flat": "1.2.6"}
LICENCES = {"noto": "Apache-2.0", "noto-v1": "Apache-2.0", "twemoji": "CC-BY-4.0", "fluent-emoji-flat": "MIT"}
# whose name and group stand for an identity: noto-v1 comes last, it names no code points
PRECEDENCE = ("noto", "twemoji", "fluent-emoji-flat", "noto-v1")
SIDE, COLUMNS = 32, 16  # a narrow sheet compresses best; its height stays below WebP's 16,383

NOTICE = """# Licences of the emoji images

`emoji32.webp` holds {n} images drawn from four emoji sets, as packaged in the npm packages named below. Changes made:
rasterised from SVG at 32 × 32 pixels on a white background; skin-tone variants, blank images and exact repeats left
out. `labels.json` holds their names and groups, from the same packages. The images keep the licences of their sets:

| style | images | npm package | upstream | licence (SPDX) |
|---|---|---|---|---|
{table}

## noto, noto-v1 — Noto Emoji

Copyright Google Inc. Noto Emoji, <https://github.com/googlefonts/noto-emoji>. Licensed under the Apache License,
Version 2.0; you may not use these images except in compliance with the License. You may obtain a copy of the License at
<https://www.apache.org/licenses/LICENSE-2.0>; it is also the text of this package's own `LICENSE` file. Unless required
by applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
governing permissions and limitations under the License. Upstream states that its flag images are in the public domain
or otherwise exempt from copyright.

## twemoji — Twemoji

Twemoji graphics, copyright Twitter, Inc and other contributors, <https://github.com/jdecked/twemoji>. Licensed under
Creative Commons Attribution 4.0 International (CC BY 4.0), <https://creativecommons.org/licenses/by/4.0/>. The images
were changed as described above; the licensors do not endorse this package. Provided without warranties of any kind.

## fluent-emoji-flat — Fluent Emoji Flat

<https://github.com/microsoft/fluentui-emoji>

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def fetch(style: str, folder: Path) -> dict[str, Any]:
    """The package's JSON files: icons, metadata, chars, info."""
    spec = f"@iconify-json/{style}@{STYLES[style]}"
    subprocess.run(["npm", "pack", "--silent", "--pack-destination", str(folder), spec], check=True, stdout=2)
    with tarfile.open(folder / f"iconify-json-{style}-{STYLES[style]}.tgz") as tar:
        parts = {m.name: tar.extractfile(m) for m in tar if m.name.endswith(".json")}
        read = {name: json.load(file) for name, file in parts.items() if file is not None}
    pack = {key: read[f"package/{key}.json"] for key in ("icons", "metadata", "chars", "info")}
    if pack["info"]["license"]["spdx"] != LICENCES[style]:
        raise SystemExit(f"{spec}: licence is {pack['info']['license']['spdx']}, expected {LICENCES[style]}")
    return pack


def drawn(pack: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, group, SVG) of every emoji without a skin tone, by name."""
    # by code point where the set names them: "police-car-light" is no skin tone, fluent's "boy-light" is
    toned = {name for code, name in pack["chars"].items() if any(f"1f3f{d}" in code for d in "bcdef")}
    group = {name: g.replace(" & ", " ") for g, names in pack["metadata"]["categories"].items() for name in names}
    icons = pack["icons"]
    for name in sorted(group):
        if name in toned or "skin-tone" in name:
            continue
        icon = icons["icons"][name]
        width, height = (icon.get(key, icons[key]) for key in ("width", "height"))
        head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        size = f'width="{SIDE}" height="{SIDE}" viewBox="0 0 {width} {height}"'
        yield name.replace("flag-for-flag-", "flag-"), group[name], f"{head} {size}>{icon['body']}</svg>"


def raster(svg: str) -> np.ndarray:
    """(32, 32, 3) uint8 on white; without system fonts, so that every machine draws the same."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


class Union:
    """Union-find over names, code points and images; the earliest node of a set stands for it."""

    def __init__(self) -> None:
        self.parent: dict[object, object] = {}
        self.rank: dict[object, int] = {}

    def find(self, node: object) -> object:
        self.rank.setdefault(node, len(self.rank))
        while (up := self.parent.get(node, node)) != node:
            node = up
        return node

    def join(self, a: object, b: object) -> None:
        first, last = sorted((self.find(a), self.find(b)), key=self.rank.__getitem__)
        self.parent[last] = first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        packs = {style: fetch(style, Path(folder)) for style in STYLES}

    same = Union()
    groups: dict[str, str] = {}
    images: dict[str, dict[str, np.ndarray]] = {}
    for style in PRECEDENCE:
        images[style] = {}
        for name, group, svg in drawn(packs[style]):
            image = raster(svg)
            if image.std() == 0:
                continue
            images[style][name] = image
            groups.setdefault(name, group)
            same.find(name)
    coded = {name for pack in packs.values() for name in pack["chars"].values()}
    for style in PRECEDENCE:
        pack = packs[style]
        for code, name in pack["chars"].items():
            if name in images[style]:
                same.join(name, ("code", code.replace("-fe0f", "")))  # the variation selector names no other emoji
        for name, alias in pack["icons"]["aliases"].items():
            # only for names without a code point: elsewhere an alias may stand for two emoji (cricket: insect, game)
            if name in groups and name not in coded and alias["parent"] in groups:
                same.join(name, alias["parent"])
        for name, image in images[style].items():
            same.join(name, (groups[name], image.tobytes()))  # fluent draws cat-face for grinning-cat, a smiley

    seen: set[bytes] = set()
    kept: list[tuple[str, str, np.ndarray]] = []
    for style in STYLES:
        for name, image in images[style].items():
            if image.tobytes() not in seen:
                seen.add(image.tobytes())
                kept.append((style, str(same.find(name)), image))
    identities = sorted({identity for _, identity, _ in kept})
    group_names = sorted(set(groups.values()))
    labels = {
        "styles": {style: sum(s == style for s, _, _ in kept) for style in STYLES},  # in the order of the images
        "groups": group_names,
        "identities": {name: group_names.index(groups[name]) for name in identities},
        "identity": [identities.index(identity) for _, identity, _ in kept],
    }

    rows = -(-len(kept) // COLUMNS)
    sheet = np.full((rows * COLUMNS, SIDE, SIDE, 3), 255, np.uint8)
    sheet[: len(kept)] = np.stack([image for _, _, image in kept])
    sheet = sheet.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 3)
    table = "\n".join(
        f"| {style} | {labels['styles'][style]} | `@iconify-json/{style}` {version} "
        f"| <{packs[style]['info']['author']['url']}> | {LICENCES[style]} |"
        for style, version in STYLES.items()
    )
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out / "emoji32.webp", lossless=True, quality=100, method=6)
    (out / "labels.json").write_text(json.dumps(labels, separators=(",", ":")) + "\n")
    (out / "LICENSES.md").write_text(NOTICE.format(n=len(kept), table=table))
    print(f"{len(kept)} images, {len(identities)} identities, {sum(f.stat().st_size for f in out.iterdir())} bytes")


if __name__ == "__main__":
    main()
