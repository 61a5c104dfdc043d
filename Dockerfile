# The API and the scheduler. compose.yaml starts both, with MySQL, Redis, and nginx.

FROM python:3.13-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libmariadb-dev pkg-config
WORKDIR /opt/backline
COPY Pipfile Pipfile.lock ./
COPY script script
RUN script/bootstrap --mysql

FROM python:3.13-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libmariadb3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin backline
WORKDIR /opt/backline
COPY --from=build /opt/backline/.venv .venv
COPY config.py wsgi.py ./
COPY app app
COPY deploy deploy
COPY migrations migrations
ENV APP_ENV=production \
    PATH=/opt/backline/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER backline
# gunicorn listens on loopback only: nginx shares the network of this container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/livez', timeout=2)"]
# The migration, the scheduler, and other commands: `docker compose run --rm api flask ...`
CMD ["gunicorn", "-c", "deploy/gunicorn.conf.py", "wsgi:app"]
