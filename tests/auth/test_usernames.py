"""Usernames in any script: marks belong to letters, and invisible characters are rejected."""

# ruff: noqa: RUF001 - the tests need letters of many scripts

import unicodedata
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
from flask.testing import FlaskClient

from app.auth.usernames import is_username
from app.models import normalization
from tests.helpers.flows import PASSWORD

VALID = [
    *("सुनील", "தமிழ்", "สุดา", "שָׁלוֹם", "מִרְיָם", "مُحَمَّد", "Nguyễn", "Ḗliás", "हिन्दी९", "मराठी_१२३", "क्षितिज"),
    *("বাংলা", "ਪੰਜਾਬੀ", "ગુજરાતી", "ଓଡ଼ିଆ", "తెలుగు", "ಕನ್ನಡ", "അനിൽ", "සිංහල", "ລາວ", "ភាសា", "ស្រី", "น้ำ", "กิตติศักดิ์"),
    *("ကျော်", "မျှော်", "མ་".rstrip("་") + "རྒྱད", "ᩉ᩠ᨶᩬᨦ", "ܣܘܪܝܝܐ̈", "ދިވެހި", "አማርኛ", "がくと", "ꦏꦿꦶꦱ꧀", "İrem"),
    *("ශ්\u200dරී", "می\u200cخواهم", "क्\u200dष"),
]
INVALID = {
    "a mark first": "\u0301ada",
    "a mark after a dot": "a.\u0301b",
    "a mark after a digit": "a1\u0301",
    "an enclosing mark": "ad\u20dda",
    "a joiner at the end": "क्\u200d",
    "a joiner without a context": "ad\u200da",
    "a non-joiner without a context": "ad\u200ca",
    "a joiner next to nothing assigned": "a\u0378\u200da",
    "a mark three times": "a\u0301\u0301\u0301b",
    "a Thai vowel three times": "กิิิ",
    "five different marks": "z\u0300\u0301\u0302\u0303\u0304b",
    "five marks, one of them in the letter": "\u00e1\u0300\u0302\u0303\u0304b",
    "ten marks that take up space": "က" + "ာေ" * 5,
    "a stacker without a letter": "ada\u1039",
    "a variation selector": "ad\ufe0fa",
    "a filler": "ada\u3164",
    "a bidi control": "ad\u202ea",
    "a space": "सु नील",
    "an @": "सुनील@",
    "an unassigned code point": "ad\u0378a",
    "a symbol": "ad♪a",
}


def test_username_may_have_marks_in_any_form() -> None:
    composed = partial(unicodedata.normalize, "NFC")
    decomposed = partial(unicodedata.normalize, "NFD")
    for name, form in product(VALID, (composed, decomposed)):
        normal = normalization.normal_form(form(name))
        assert is_username(normal), ascii(normal)
        assert normal == normalization.normal_form(name)


def test_username_with_invisible_characters_is_rejected() -> None:
    assert [why for why, name in INVALID.items() if is_username(normalization.normal_form(name))] == []


def test_username_of_an_earlier_release_is_still_valid() -> None:
    """Check every letter and digit that the earlier rule allowed, and all that normalize to them."""
    for code in range(0x110000):
        letter = chr(code)
        if letter.isalnum():
            normal = normalization.normal_form(f"a{letter}b")
            assert normalization.normal_form(normal) == normal
            if all(each.isalnum() for each in normal) and not set(normal) & set("\u115f\u1160"):
                assert is_username(normal), hex(code)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_username_with_marks_registers_and_signs_in(new_client: Callable[[], FlaskClient]) -> None:
    for number, name in enumerate(("सुनील", "தமிழ்", "สุดา", "שָׁלוֹם", "Nguyễn")):
        body = {"username": name, "email": f"p{number}@example.com", "password": PASSWORD}
        response = new_client().post("/api/register", json=body)
        assert response.status_code == 201, (name, response.text)
        assert response.json["username"] == normalization.normal_form(name)
        login = {"login": unicodedata.normalize("NFD", name), "password": PASSWORD}
        assert new_client().post("/api/login", json=login).status_code == 200
