"""The HTTP edge: sessions, access rules, CSRF, throttling, errors, and the API's documentation."""
