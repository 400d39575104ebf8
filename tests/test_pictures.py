"""Every picture of README.md, CONTRIBUTING.md and docs/ is one that `scripts/pictures.py` made."""

import hashlib
import re
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import pictures

from raffect.errors import RaffectError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def shown():
    """Names of the pictures that pages show."""
    names = set()
    for page in PAGES:
        for address in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", page.read_text()):
            file = (page.parent / address).resolve()
            assert file.is_relative_to(pictures.DOCS), f"{page.name} shows {address}"
            names.add(file.relative_to(pictures.DOCS).as_posix())
    return names


def test_pages_show_the_pictures_that_the_script_makes_and_no_others():
    made = {f"{name}.png" for name in pictures.PICTURES}
    assert shown() == made
    assert {path.name for path in pictures.DOCS.rglob("*.png")} == made


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_the_file_that_the_script_recorded(name):
    made, file = pictures.read_pictures()[name], pictures.DOCS / f"{name}.png"
    assert made.sha256 == hashlib.sha256(file.read_bytes()).hexdigest(), f"{name} is from elsewhere"
    assert made.shows == pictures.PICTURES[name].shows
    assert made.git_commit
    assert file.stat().st_size <= pictures.MOST_BYTES


@pytest.mark.skipif(mpl.__version_info__ < (3, 11), reason="earlier versions draw text otherwise")
def test_the_cheapest_picture_made_again_is_the_one_in_docs(tmp_path):
    pictures.save(pictures.PICTURES["expressions"].make(tmp_path), tmp_path / "again.png")
    again, kept = (
        np.asarray(Image.open(path).convert("RGB"), float)
        for path in (tmp_path / "again.png", pictures.DOCS / "expressions.png")
    )
    # Fonts of another version may move a letter by a pixel
    assert again.shape == pytest.approx(kept.shape, abs=4)
    height, width = np.minimum(again.shape[:2], kept.shape[:2])
    assert np.abs(again[:height, :width] - kept[:height, :width]).mean() < 3


def test_a_small_png_keeps_its_colors_and_loses_pixels_where_it_must(tmp_path, monkeypatch):
    flat = Image.new("RGB", (300, 200), "#9b6dd6")
    pictures.save(flat, tmp_path / "flat.png")
    with Image.open(tmp_path / "flat.png") as image:
        assert image.size == (300, 200)
        assert image.convert("RGB").getpixel((5, 5)) == (155, 109, 214)
    monkeypatch.setattr(pictures, "MOST_BYTES", 20_000)
    noise = np.random.default_rng(0).integers(0, 255, (150, 150, 3), dtype=np.uint8)
    pictures.save(Image.fromarray(noise), tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size < 20_000


def test_a_name_that_no_picture_has_is_refused_before_anything_is_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--only", "figure3"])
    with pytest.raises(RaffectError, match="--only figure3: expected some of expressions, "):
        pictures.main()
