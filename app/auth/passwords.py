"""Passwords: argon2id, and the same work whether or not there is somebody to compare with."""

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

MIN_LENGTH = 8  # OWASP ASVS 5.0 V6.2.1
MAX_LENGTH = 256  # long enough for any passphrase, short enough to hash without harm

# OWASP ASVS 5.0 appendix C: argon2id with 46 MiB, one pass, one lane.
_hasher = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)

# Nobody's hash, of a value nobody knows, with the same cost as everybody else's.
_NOBODY = "$argon2id$v=19$m=47104,t=1,p=1$kX2dGm0b1Yq3nq3o0H1l3g$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def hash_password(password: str) -> str:
    """The hash to store; its parameters are part of it."""
    return _hasher.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed. Costs the same for `None`: an unknown user."""
    try:
        return _hasher.verify(password_hash or _NOBODY, password) and password_hash is not None
    except (Argon2Error, InvalidHashError):
        return False


def is_outdated(password_hash: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)
