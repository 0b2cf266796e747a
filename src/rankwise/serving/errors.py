"""Refusals in the form of OpenAI's API."""

from __future__ import annotations

from starlette.responses import JSONResponse

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip


def refusal(
    status: int, message: str, parameter: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """`parameter` is the field that is wrong."""
    return JSONResponse({"error": problem(status, message, parameter)}, status, headers)


def problem(status: int, message: str, parameter: str | None = None) -> dict[str, str | int | None]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": parameter, "code": status}
