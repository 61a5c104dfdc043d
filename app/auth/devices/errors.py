"""Errors that OAuth endpoints report in their own format."""


class OAuthError(Exception):
    """An error response with status 400 (RFC 6749 section 5.2).

    `description` is in ASCII, without quotes and backslashes.
    """

    def __init__(self, code: str, description: str) -> None:
        super().__init__(code)
        self.code = code
        self.description = description
