"""What the mails say. Links carry their token after a `#`, which browsers keep to themselves."""

from app.mail import Mail
from app.models import Purpose, User
from app.parts import parts

_FOOT = "\n\nIf this was not you, you need do nothing.\n"
_ALARM = "\n\nIf this was not you, ask for a new password at once: {page}\n"


def with_token(user: User, purpose: Purpose, token: str) -> Mail:
    """The mail that brings a one-time token."""
    page, name = parts().config.frontend_url, user.username
    if purpose is Purpose.PASSWORD_RESET:
        return Mail(
            user.email,
            "Choose a new password",
            f"Hello {name},\n\nsomebody has asked for a new password for your account. "
            f"To choose one, within an hour:"
            f"\n\n{page}#password-reset={token}{_FOOT}",
        )
    return Mail(
        user.email,
        "Is this your address?",
        f"Hello {name},\n\nplease confirm, within a day, that this is your address:"
        f"\n\n{page}#email-verification={token}{_FOOT}",
    )


def password_changed(user: User) -> Mail:
    """Tells the owner that there is a new password, and what to do if it is not theirs."""
    return _news(user.email, user.username, "Your password was changed", "your password was changed.")


def email_changed(old_address: str, user: User) -> Mail:
    """Tells the old address that another one has taken its place."""
    return _news(
        old_address, user.username, "Your address was changed", "your account has another address now."
    )


def account_deleted(user: User) -> Mail:
    """Confirms that an account is gone."""
    text = "your account is deleted, with the connection to Spotify and everything else we had of yours."
    return Mail(user.email, "Your account is deleted", f"Hello {user.username},\n\n{text}\n")


def spotify_ends_soon(user: User, days: int) -> Mail:
    """Reminds that Spotify ends every connection after six months, and this one soon."""
    page = parts().config.frontend_url
    when = "tomorrow" if days == 1 else f"in {days} days"
    return Mail(
        user.email,
        "Please connect Spotify again",
        f"Hello {user.username},\n\nevery half year Spotify asks anew whether you agree. Your connection "
        f"ends {when}. Then please connect Spotify again: {page}\n",
    )


def _news(to: str, name: str, subject: str, text: str) -> Mail:
    alarm = _ALARM.format(page=parts().config.frontend_url)
    return Mail(to, subject, f"Hello {name},\n\n{text}{alarm}")
