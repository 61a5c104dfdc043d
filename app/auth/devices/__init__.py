"""The device authorization grant (RFC 8628): tokens for clients without a browser, such as a CLI or a TV."""
