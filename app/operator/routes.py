"""`/operator`: a page for operators, on the machine itself. nginx does not publish it.

Requests through a proxy, and those for another host, get 404. The latter also stops pages of other sites that
have made their own name lead to this machine (DNS rebinding).
"""

from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, render_template, request

from app.operator import page
from app.operator.overview import OverviewReader
from app.web.access import public
from app.web.client_address import parse
from app.web.problems import NotFound

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HOSTS = ("127.0.0.1", "localhost", "::1")
_PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")


def init_app(app: Flask, overview: OverviewReader) -> None:
    """Add the page."""
    blueprint = Blueprint("operator", __name__)
    blueprint.before_request(_require_this_machine)

    @blueprint.get("/operator")
    @public
    def show_page() -> Response:
        """Show the numbers of now and of the last day. The script replaces them every few seconds."""
        html = render_template("operator.html", **page.variables(overview.read()))
        response = Response(html, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @blueprint.get("/operator/style.css")
    @public
    def style() -> Response:
        return Response(render_template("operator.css"), content_type="text/css; charset=utf-8")

    @blueprint.get("/operator/update.js")
    @public
    def script() -> Response:
        return Response(render_template("operator.js"), content_type="text/javascript; charset=utf-8")

    app.register_blueprint(blueprint)


def _require_this_machine() -> None:
    """Require that a browser on this machine, or at the end of a tunnel to it, sends the request directly.

    Raises:
        NotFound: It does not.
    """
    client = parse(request.remote_addr or "")
    is_direct = not any(name in request.headers for name in _PROXY_HEADERS)
    is_for_this_machine = urlsplit(f"//{request.host}").hostname in _HOSTS
    if client is None or not (client.is_loopback and is_direct and is_for_this_machine):
        raise NotFound
