"""The HTTP edge: sessions, access, CSRF, throttling, errors, and the API document."""
