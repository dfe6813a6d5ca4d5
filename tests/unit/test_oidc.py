"""What an ID token is worth, and what rules give: hostile tokens, and people in several groups."""

import time
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey
from msgspec import json
from pydantic import ValidationError

from collector.oidc_provider import ALGORITHMS, checked
from collector.oidc_settings import OidcSettings
from collector.problems import Problem

ISSUER, CLIENT, NONCE = "https://login.corp.example/realms/plant", "linewarden", "the nonce"
KEY = RSAKey.generate_key(2048)
RULES: Any = [
    {"value": "analysts-north", "role": "analyst", "places": ["north"]},
    {"value": "viewers-south", "role": "viewer", "places": ["south"]},
    {"value": "analysts-west", "role": "analyst", "places": ["west/line1"]},
]
SETTINGS = OidcSettings(issuer=ISSUER, client_id=CLIENT, rules=RULES)


def _claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {"iss": ISSUER, "aud": CLIENT, "sub": "1", "nonce": NONCE, "iat": now, "exp": now + 300}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def _token(claims: dict[str, Any], key: Any = KEY, alg: str = "RS256") -> str:
    return jws.serialize_compact({"alg": alg}, json.encode(claims), key, algorithms=[alg])


def _code(token: str) -> str:
    with pytest.raises(Problem) as caught:
        checked(token, KEY, "RS256", SETTINGS, NONCE)
    return caught.value.code


def test_a_token_that_is_right_is_taken() -> None:
    assert checked(_token(_claims()), KEY, "RS256", SETTINGS, NONCE)["sub"] == "1"
    assert checked(_token(_claims(aud=[CLIENT, "b"], azp=CLIENT)), KEY, "RS256", SETTINGS, NONCE)


NOW = int(time.time())
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"iss": ISSUER + "/"}, "oidc-token"),
    "another audience": ({"aud": "other"}, "oidc-audience"),
    "no audience": ({"aud": None}, "oidc-audience"),
    "several audiences and no party": ({"aud": [CLIENT, "b"]}, "oidc-audience"),
    "another party": ({"azp": "b"}, "oidc-audience"),
    "expired": ({"exp": NOW - 3_600, "iat": NOW - 7_200}, "oidc-clock"),
    "from the future": ({"iat": NOW + 7_200, "exp": NOW + 9_000}, "oidc-clock"),
    "not yet": ({"nbf": NOW + 7_200}, "oidc-clock"),
    "issued long ago": ({"iat": NOW - 86_400, "exp": NOW + 86_400}, "oidc-clock"),
    "no end": ({"exp": None}, "oidc-token"),
    "an end that is a text": ({"exp": "9999999999"}, "oidc-token"),
    "another nonce": ({"nonce": "x"}, "oidc-token"),
    "no nonce": ({"nonce": None}, "oidc-token"),
    "nobody": ({"sub": ""}, "oidc-token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_token_that_is_not_for_this_sign_in_is_refused(case: str) -> None:
    changed, code = WRONG[case]
    assert _code(_token(_claims(**changed))) == code


def test_a_token_that_the_provider_did_not_sign_is_refused() -> None:
    assert _code(_token(_claims(), RSAKey.generate_key(2048))) == "oidc-token"
    assert _code(_token(_claims(), ECKey.generate_key("P-256"), "ES256")) == "oidc-token"
    assert _code(_token(_claims(), OctKey.generate_key(256), "HS256")) == "oidc-token"
    head, body, signature = _token(_claims()).split(".")
    assert _code(f"eyJhbGciOiJub25lIn0.{body}.") == "oidc-token"
    assert _code(f"{head}.{body}.") == "oidc-token"
    assert _code(f"{head}.{body[:-4]}AAAA.{signature}") == "oidc-token"
    assert _code(_token({"a": 1})) == "oidc-token"
    assert not any(name == "none" or name.startswith("HS") for name in ALGORITHMS)


def test_two_groups_never_add_up_to_more_than_one_of_them_says() -> None:
    grant = SETTINGS.granted({"groups": ["viewers-south", "analysts-west", "analysts-north"]})
    assert (grant.role, set(grant.scope)) == ("analyst", {("north", "", ""), ("west", "line1", "")})
    assert SETTINGS.granted({"groups": "viewers-south"}).scope == (("south", "", ""),)
    for claims in ({}, {"groups": ["else"]}, {"groups": None}, {"groups": [{"analysts-north": 1}]}):
        with pytest.raises(Problem, match=r"role here"):
            SETTINGS.granted(claims)


@pytest.mark.parametrize(
    "issuer", ["http://login.corp.example", "login.corp.example", "https://a.example?x=1", "https://"]
)
def test_an_issuer_that_others_could_pretend_to_be_is_refused(issuer: str) -> None:
    with pytest.raises(ValidationError, match="issuer"):
        OidcSettings(issuer=issuer, client_id=CLIENT, rules=RULES)
