from app.api import Blueprint
from app.auth.guard import require_user, signed_in
from app.models import User
from app.user.schemas import UserOut

blueprint = Blueprint("user", __name__, description="The signed-in person")


@blueprint.get("/api/user")
@signed_in
@blueprint.response(200, UserOut)
@blueprint.problems(401, 503)
def get() -> User:
    """Who is signed in"""
    return require_user()
