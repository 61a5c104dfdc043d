"""What the mails say. Links carry their token after a `#`, which browsers keep to themselves."""

from app.mail import Mail
from app.models import Purpose, User
from app.parts import parts

_FOOT = "\n\nIf this was not you, you need do nothing.\n"


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
    return Mail(
        user.email,
        "Your password was changed",
        f"Hello {user.username},\n\nyour password was changed. If this was not you, ask for a new one at "
        f"once: {parts().config.frontend_url}\n",
    )


def email_changed(user: User) -> Mail:
    """Tells the address, which is still the old one, that another is taking its place."""
    return Mail(
        user.email,
        "Your address was changed",
        f"Hello {user.username},\n\nyour account has another address now. If this was not you, somebody "
        f"knows your password. Please tell the people who run {parts().config.frontend_url}.\n",
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
