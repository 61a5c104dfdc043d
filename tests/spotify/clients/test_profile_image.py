"""Which of a person's images is shown."""

import pytest

from app.spotify.clients.profile import _widest_image


def image(name: str, width: object = None) -> dict[str, object]:
    return {"url": f"https://i.scdn.co/{name}", "width": width, "height": width}


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
        *(
            ([image("a", width), image("b", 64)], "b")
            for width in (-640, 0, True, "wide", "9" * 5000, 10**30, 1e400, float("nan"), [640], {})
        ),
        ([image("a", -1), image("b", True)], "a"),
        ([], None),
        (None, None),
        ({"0": image("a", 64)}, None),
        ([None, {}], None),
    ],
)
def test_profile_uses_the_widest_usable_image(images: object, expected: str | None) -> None:
    assert _widest_image(images) == (f"https://i.scdn.co/{expected}" if expected else None)
