"""Loosens types of libraries in tests.

`Response.json` is `Any | None`, but a test that reads a member fails anyway if it is None. Commands of
redis-py return `Awaitable[T] | T`, for asynchronous clients, and use `str` where our clients use `bytes`.

The product is checked with the declared types.
"""

from collections.abc import Callable
from pathlib import Path

from mypy.plugin import AttributeContext, MethodContext, MethodSigContext, Plugin
from mypy.types import AnyType, FunctionLike, Instance, Type, TypeOfAny, UnionType, get_proper_type

TESTS = Path(__file__).resolve().parent.parent
JSON = {"werkzeug.test.TestResponse.json", "werkzeug.wrappers.response.Response.json"}


class TestsPlugin(Plugin):
    """The hooks that mypy calls."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """Type the JSON of responses."""
        return _any if fullname in JSON else None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        """Type the arguments of Redis commands."""
        return _any_arguments if fullname.startswith("redis.") else None

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """Type the results of Redis commands."""
        return _any_if_awaitable if fullname.startswith("redis.") else None


def _is_in_tests(context: AttributeContext | MethodContext | MethodSigContext) -> bool:
    return Path(context.api.path).resolve().is_relative_to(TESTS)


def _any(context: AttributeContext) -> Type:
    return AnyType(TypeOfAny.explicit) if _is_in_tests(context) else context.default_attr_type


def _any_arguments(context: MethodSigContext) -> FunctionLike:
    declared = context.default_signature
    if not _is_in_tests(context):
        return declared
    arguments = [AnyType(TypeOfAny.explicit) for _ in declared.arg_types]
    return declared.copy_modified(arg_types=arguments)


def _any_if_awaitable(context: MethodContext) -> Type:
    declared = get_proper_type(context.default_return_type)
    is_asynchronous = isinstance(declared, UnionType) and any(
        map(_is_awaitable, map(get_proper_type, declared.items))
    )
    if is_asynchronous and _is_in_tests(context):
        return AnyType(TypeOfAny.explicit)
    return context.default_return_type


def _is_awaitable(item: Type) -> bool:
    return isinstance(item, Instance) and item.type.fullname == "typing.Awaitable"


def plugin(_: str) -> type[Plugin]:
    """Return the plugin to mypy."""
    return TestsPlugin
