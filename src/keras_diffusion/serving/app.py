"""Puts the server's APIs, the web page and the rules of security together."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from keras_diffusion.serving import a1111_api, a1111_controlnet, jobs_api, openai_api
from keras_diffusion.serving.problems import Problem
from keras_diffusion.serving.security import Gate

PAGE = Path(__file__).parent / "page"


def make_app(service, rules):
    """Makes the application.

    Args:
        service: The `Service`.
        rules: The `Rules` of who may use it.

    Returns:
        An ASGI application.
    """
    pages = [Route("/", page), Mount("/page", StaticFiles(directory=PAGE))]
    routes = [*jobs_api.ROUTES, *a1111_api.ROUTES, *a1111_controlnet.ROUTES, *openai_api.ROUTES, *pages]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, rules=rules, limits=service.limits)],
        exception_handlers={
            Problem: lambda request, problem: problem.response(),
            HTTPException: lambda request, error: Problem(
                f"{error.detail}.", error.status_code, headers=error.headers
            ).response(),
        },
    )
    app.state.service = service
    app.state.a1111_settings, app.state.a1111_interrupted = dict(a1111_api.SETTINGS), set()
    return app


async def page(request):
    """GET /."""
    return FileResponse(PAGE / "index.html")
