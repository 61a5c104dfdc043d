"""Configuration for production: gunicorn and nginx."""
