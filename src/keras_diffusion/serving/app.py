"""Puts the server's APIs, the web page and the rules of security together."""

import logging
import traceback
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from keras_diffusion.serving import a1111_api, jobs_api
from keras_diffusion.serving.problems import Problem
from keras_diffusion.serving.security import Gate

PAGE = Path(__file__).parent / "page"

logger = logging.getLogger(__name__)


def make_app(service, rules):
    """Makes the application.

    Args:
        service: The `Service`.
        rules: The `Rules` of who may use it.

    Returns:
        An ASGI application.
    """
    pages = [Route("/", page), Mount("/page", StaticFiles(directory=PAGE, check_dir=False))]
    routes = [*jobs_api.ROUTES, *a1111_api.ROUTES, *pages]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, rules=rules, limits=service.limits)],
        exception_handlers={
            Problem: lambda request, problem: problem.response(),
            HTTPException: lambda request, error: Problem(f"{error.detail}.", error.status_code).response(),
            Exception: defect,
        },
    )
    app.state.service = service
    app.state.a1111_settings, app.state.a1111_interrupted = dict(a1111_api.SETTINGS), set()
    return app


async def page(request):
    """GET /."""
    return FileResponse(PAGE / "index.html")


def defect(request, error):
    """Says that the server has a defect, and logs where; the words of the error may be a prompt's."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s in %s, line %d", type(error).__name__, place.filename, place.lineno)
    return Problem(f"The server has a defect ({type(error).__name__}); its log says where.", 500).response()
