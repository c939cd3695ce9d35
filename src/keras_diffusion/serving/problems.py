"""Says to clients what is wrong, in the form that OpenAI's clients read."""

from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # of a status; the rest below


class Problem(Exception):
    """A request that is not followed.

    Args:
        message: What is wrong, what is allowed, and what to do.
        status: The HTTP status, 400 to 599.
        param: The name of the field that is wrong, or None.
        code: A name for the kind of problem, or None.
        headers: A dict of HTTP headers.
    """

    def __init__(self, message, status=400, param=None, code=None, headers=None):
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    def error(self):
        """Returns the error as OpenAI's clients read it, a dict."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self):
        """Returns the answer: `error` for clients of OpenAI's API, and `detail` for those of A1111's."""
        error = self.error()
        return JSONResponse({"error": error, "detail": error["message"]}, self.status, self.headers)
