"""Draws the three pictures that the package ships, agentsys/pictures/examples: `python docs/draw_examples.py`."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (480, 360)
FOLDER = Path(__file__).parents[1] / "agentsys" / "pictures" / "examples"
Draw = ImageDraw.ImageDraw


def person(draw: Draw, x: int, y: int, smile: bool = True) -> None:
    """A stick figure whose feet are at (x, y)."""
    draw.line([(x - 18, y), (x, y - 50), (x + 18, y)], "black", 4)
    draw.line([(x, y - 50), (x, y - 105)], "black", 4)
    draw.ellipse([x - 20, y - 145, x + 20, y - 105], "white", "black", 4)
    mouth = [x - 10, y - 128, x + 10, y - 113]
    draw.arc(mouth, 20 if smile else 200, 160 if smile else 340, "black", 3)


def rain(draw: Draw) -> None:
    """A man under an umbrella; it rains only below the umbrella."""
    person(draw, 240, 340, smile=False)
    draw.line([(240, 265), (275, 240), (275, 110)], "black", 4)
    draw.pieslice([175, 60, 375, 200], 180, 360, "steelblue", "black", 3)
    drops = random.Random(0)
    for _ in range(45):
        x, y = drops.randint(185, 365), drops.randint(135, 320)
        draw.line([(x, y), (x - 4, y + 12)], "royalblue", 2)
    draw.ellipse([395, 20, 455, 80], "gold", "orange", 4)


def balloons(draw: Draw) -> None:
    """A weight lifter whose weights are balloons; they carry him away."""
    person(draw, 240, 290)
    draw.line([(240, 225), (170, 160)], "black", 4)
    draw.line([(240, 225), (310, 160)], "black", 4)
    draw.line([(110, 160), (370, 160)], "black", 6)
    for x, color in ((110, "tomato"), (370, "mediumseagreen")):
        draw.ellipse([x - 48, 60, x + 48, 170], color, "black", 3)
    draw.ellipse([195, 335, 285, 350], "lightgray")


def fishbowl(draw: Draw) -> None:
    """A fish outside of its bowl, with a rod, fishing for a cat in the bowl."""
    draw.ellipse([60, 150, 250, 330], "lightcyan", "black", 4)
    draw.ellipse([125, 215, 195, 275], "gray", "black", 3)
    for x in (130, 172):
        draw.polygon([(x, 222), (x + 6, 196), (x + 20, 216)], "gray", "black")
    draw.ellipse([140, 234, 150, 244], "yellow")
    draw.ellipse([168, 234, 178, 244], "yellow")
    draw.ellipse([320, 230, 420, 290], "orange", "black", 3)
    draw.polygon([(415, 260), (455, 230), (455, 290)], "orange", "black")
    draw.ellipse([340, 248, 350, 258], "black")
    draw.line([(335, 275), (250, 90)], "saddlebrown", 5)
    draw.line([(250, 90), (160, 90), (160, 205)], "black", 2)


def main() -> None:
    """Draw and save all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for scene in (rain, balloons, fishbowl):
        image = Image.new("RGB", SIZE, "white")
        draw = ImageDraw.Draw(image)
        draw.line([(0, 341), (SIZE[0], 341)], "gray", 2)
        scene(draw)
        image.save(FOLDER / f"{scene.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
