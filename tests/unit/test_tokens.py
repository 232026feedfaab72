import re

import pytest

from galactica.scheduler.security.tokens import ParsedToken, TokenError, hash_secret, new_token, parse_token

CA = "ab" * 32


def test_new_token_is_understood_by_its_reader():
    text, token_id, secret_sha256 = new_token(CA)

    assert parse_token(text) == ParsedToken(id=token_id, secret_sha256=secret_sha256, ca_digest=CA)


def test_token_text_has_the_agreed_form_and_a_secret_of_at_least_128_bits():
    text, token_id, secret_sha256 = new_token(CA)

    prefix, spoken_id, secret, digest = text.split(".")
    assert (prefix, spoken_id, digest) == ("gal1", token_id, CA)
    assert hash_secret(secret) == secret_sha256
    assert re.fullmatch(r"[A-Za-z0-9_-]+", secret)
    assert len(secret) * 6 >= 128


def test_no_two_tokens_are_alike():
    assert len({new_token(CA) for _ in range(100)}) == 100


def test_token_is_read_with_the_blanks_of_a_pasted_line():
    text, token_id, _ = new_token(CA)

    assert parse_token(f"  {text}\n").id == token_id


def test_parsed_token_does_not_carry_the_secret():
    text, _, _ = new_token(CA)

    assert text.split(".")[2] not in repr(parse_token(text))


SECRET = "s3cret-s3cret-s3cret-s3cret-s3cr"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a join token"),
        (SECRET, "not a join token"),
        (f"gal2.0123456789ab.{SECRET}.{CA}", "not a join token"),
        (f"gal1.0123456789ab.{SECRET}", "3 parts instead of 4"),
        (f"gal1.0123456789ab.{SECRET}.{CA}.x", "5 parts instead of 4"),
        (f"gal1.{SECRET}.{SECRET}.{CA}", "id is malformed"),
        (f"gal1.0123456789ab.{SECRET}x.{CA}", "secret is malformed"),
        (f"gal1.0123456789ab..{CA}", "secret is malformed"),
        (f"gal1.0123456789ab.{SECRET}.{CA[:-1]}", "CA digest is malformed"),
    ],
)
def test_damaged_token_is_refused_with_the_reason_and_without_its_secret(text, says):
    with pytest.raises(TokenError, match=says) as refusal:
        parse_token(text)

    assert SECRET not in str(refusal.value)
