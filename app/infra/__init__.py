"""Infrastructure: clock, database, Redis, HTTP client, encryption, and logs."""
