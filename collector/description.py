"""The OpenAPI document, completed: what the framework cannot see from a handler's types.

For every operation the problems that it may answer with, whose key it takes, and the formats of its answer. A handler names in its
`opt["formats"]` the media types that it answers with beside JSON.
For the guard the names of an operation's parameters are left in `opt["known"]`.
"""

from dataclasses import fields, replace
from typing import Any

from litestar import Litestar
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Parameter, Reference, Schema
from litestar.openapi.spec.enums import OpenAPIType

from collector import problems, query
from collector.access import MAY, PUBLIC

_PROBLEM = "Problem"
_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    title=_PROBLEM,
    description="An error, RFC 9457. `code` names it for programs; `detail` says what is wrong, where, and what to do",
    required=["type", "title", "status", "detail"],
    properties={
        "type": Schema(type=OpenAPIType.STRING),
        "title": Schema(type=OpenAPIType.STRING),
        "status": Schema(type=OpenAPIType.INTEGER),
        "detail": Schema(type=OpenAPIType.STRING),
        "code": Schema(type=OpenAPIType.STRING),
    },
)
_MEANINGS = {
    400: "The request cannot be understood",
    401: "No key, or none that is good",
    403: "Not for this role, or beyond the places that may be seen",
    404: "There is none",
    405: "Not this method",
    409: "It contradicts what is there",
    413: "Too large",
    414: "The address of the request is too long",
    415: "Of a kind that is not taken",
    422: "It cannot be taken",
    428: "Say which version you saw: version",
    431: "The heads of the request are too long, or too many",
    429: "Too many requests; Retry-After says when to come again",
    500: "The collector has a defect",
    502: "The provider of sign-ins answered what cannot be used",
    503: "Not now; Retry-After says when to come again",
    504: "It takes too long; narrow the question",
}
_OF_SIGN_IN = (403, 404, 429, 502, 503)
_METHODS = ("get", "put", "post", "delete", "patch")


def complete(app: Litestar) -> None:
    """Add what is missing to the document of `app`."""
    document = app.openapi_schema
    for schema in document.components.schemas.values():
        for member in (schema.properties or {}).values():
            # Any value or null is what fits one of them, and null fits both.
            if isinstance(member, Schema) and member.one_of:
                member.any_of, member.one_of = member.one_of, None
    document.components.schemas[_PROBLEM] = _SCHEMA
    opts = {
        (route.path_format, method.lower()): handler.opt
        for route in app.routes
        for handler in getattr(route, "route_handlers", [])
        for method in getattr(handler, "http_methods", ())
    }
    for path, item in (document.paths or {}).items():
        for method in _METHODS:
            operation: Operation | None = getattr(item, method)
            if operation is not None:
                opt = opts.get((path, method), {})
                opt["known"] = _narrowed(operation, opt)
                _complete(operation, opt, path, method)


def _narrowed(operation: Operation, opt: dict[str, Any]) -> frozenset[str]:
    """Names of the parameters. An operation that takes some filters of events only is described with those alone."""
    listed = [one for one in operation.parameters or () if isinstance(one, Parameter)]
    for one in listed:
        one.schema = _given(one.schema)
    names = frozenset(one.name for one in listed if one.param_in == "query")
    if names >= query.FILTERS:
        names &= query.known(opt)
        operation.parameters = [one for one in listed if one.param_in != "query" or one.name in names]
    return names


def _given(schema: Schema | Reference | None) -> Schema | Reference | None:
    """That of a parameter where it is given: one that is not is left out, there is no null in an address."""
    if not isinstance(schema, Schema) or not schema.one_of:
        return schema
    kinds = [one for one in schema.one_of if not (isinstance(one, Schema) and one.type == OpenAPIType.NULL)]
    if len(kinds) != 1 or not isinstance(kinds[0], Schema):
        return schema
    said = {field.name: getattr(schema, field.name) for field in fields(schema) if field.name != "one_of"}
    return replace(kinds[0], **{name: value for name, value in said.items() if value is not None})


def _complete(operation: Operation, opt: dict[str, Any], path: str, method: str) -> None:
    access = opt.get("access")
    statuses = [400, 414, 431, 500]
    if access == PUBLIC:
        operation.security = []
        # Beyond health there is a door of its own: a token, a signature, a password.
        statuses += [401, 403, 404, 409, 429, 503] if path.startswith("/v1/") else []
    else:
        roles = ", ".join(MAY.get(access or "", ()))
        operation.description = f"{operation.description or ''}\n\nFor: {roles}.".strip()
        statuses += [401, 403, 429, 503, 504]
    statuses += _OF_SIGN_IN if path.startswith("/v1/session/oidc") else ()
    if "{" in path:
        statuses.append(404)
    if method != "get":
        statuses += [409, 413, 415, 422]
    if method == "patch":
        statuses.append(428)
    responses = operation.responses or {}
    for status in sorted(set(statuses)):
        if str(status) not in responses or status == 400:  # noqa: PLR2004 - the framework's own, which is not ours
            content = {problems.MEDIA_TYPE: OpenAPIMediaType(schema=Reference(ref=f"#/components/schemas/{_PROBLEM}"))}
            responses[str(status)] = OpenAPIResponse(description=_MEANINGS[status], content=content)
    for media in opt.get("formats", ()):
        for code, response in responses.items():
            if code.startswith("2") and isinstance(response, OpenAPIResponse):
                response.content = {
                    **(response.content or {}),
                    media: OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING)),
                }
    operation.responses = responses
