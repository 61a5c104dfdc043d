"""Which image of a profile is used."""

import pytest

from app.spotify.clients.profile import parse_profile


def image(name: str, width: object = None) -> dict[str, object]:
    return {"url": f"https://i.scdn.co/{name}", "width": width, "height": width}


IMPLAUSIBLE_WIDTHS: list[object] = [-640, 0, True, "wide", "9" * 5000, 10**30, 1e400, float("nan"), [640], {}]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([image("a", 64), image("b", 300)], "b"),
        ([image("a", 300), image("b", 64)], "a"),
        ([image("a", 300), image("b", 300)], "a"),
        ([None, image("b", 64)], "b"),
        (["https://i.scdn.co/a", [], image("b")], "b"),
        ([image("a"), image("b", 64)], "b"),
        ([image("a"), image("b")], "a"),
        ([{"url": None, "width": 640}, {"width": 640}, image("c", 64)], "c"),
        ([{"url": "javascript:alert(1)", "width": 640}, image("b", 64)], "b"),
        ([image("x" * 2048, 640), image("b", 64)], "b"),
        ([image("a", 64), image("b", "300")], "b"),
        ([image("a", 64), image("b", 300.5)], "b"),
        *(([image("a", width), image("b", 64)], "b") for width in IMPLAUSIBLE_WIDTHS),
        ([image("a", -1), image("b", True)], "a"),
        ([], None),
        (None, None),
        ({"0": image("a", 64)}, None),
        ([None, {}], None),
    ],
)
def test_profile_uses_the_widest_usable_image(images: object, expected: str | None) -> None:
    profile = parse_profile({"id": "mira", "images": images})
    assert profile is not None
    assert profile.image_url == (f"https://i.scdn.co/{expected}" if expected else None)
