"""What the mails say. Links carry their token after a `#`, which browsers keep to themselves."""

from app.mail import Mail
from app.models import Purpose, User
from app.parts import parts

_FOOT = "\n\nIf this was not you, you need do nothing."


def with_token(user: User, purpose: Purpose, token: str) -> Mail:
    """The mail that brings a one-time token."""
    page = parts().config.frontend_url
    if purpose is Purpose.PASSWORD_RESET:
        text = "somebody has asked for a new password for your account. To choose one, within an hour:"
        return _to(user, "Choose a new password", f"{text}\n\n{page}#password-reset={token}{_FOOT}")
    text = "please confirm, within a day, that this is your address:"
    return _to(user, "Is this your address?", f"{text}\n\n{page}#email-verification={token}{_FOOT}")


def password_changed(user: User) -> Mail:
    """Tells the owner that there is a new password, and what to do if it is not theirs."""
    text = "your password was changed. If this was not you, ask for a new one at once:"
    return _to(user, "Your password was changed", f"{text} {parts().config.frontend_url}")


def email_changed(user: User) -> Mail:
    """Tells the address, which is still the old one, that another is taking its place."""
    text = "your account has another address now. If this was not you, somebody knows your password."
    who = f"Please tell the people who run {parts().config.frontend_url}."
    return _to(user, "Your address was changed", f"{text} {who}")


def account_deleted(user: User) -> Mail:
    """Confirms that an account is gone."""
    text = "your account is deleted, with the connection to Spotify and everything else we had of yours."
    return _to(user, "Your account is deleted", text)


def spotify_ends_soon(user: User, days: int) -> Mail:
    """Reminds that Spotify ends every connection after six months, and this one soon."""
    when = "tomorrow" if days == 1 else f"in {days} days"
    text = f"every half year Spotify asks anew whether you agree. Your connection ends {when}."
    then = f"Then please connect Spotify again: {parts().config.frontend_url}"
    return _to(user, "Please connect Spotify again", f"{text} {then}")


def _to(user: User, subject: str, text: str) -> Mail:
    return Mail(user.email, subject, f"Hello {user.username},\n\n{text}\n")
