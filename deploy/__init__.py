"""How it runs in production: what gunicorn and nginx are told."""
