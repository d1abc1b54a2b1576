"""The routes that need not be fast: models, metrics, documentation. `app` has authenticated the request."""

import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from baton.errors import BatonError
from baton.telemetry.exposition import Exposition
from router.http.error_format import MethodNotAllowed, NotFound, error_headers, error_object
from router.openai import openapi
from router.openai.generate import Generator
from router.openai.served_model import ServedModel


def create(model: ServedModel, generator: Generator, version: str, exposition: Exposition | None = None) -> FastAPI:
    """Return an ASGI application for these routes. Its errors have the usual format."""
    app = FastAPI(
        title="Baton",
        version=version,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _on_http_error, BatonError: _on_error},
    )
    _add_models(app, model, generator)
    _add_metrics(app, exposition or Exposition())
    described = openapi.document(version, model.names, model.facts.vocab_size, framed=bool(model.tokenizer.encode("")))
    app.openapi = lambda: described  # type: ignore[method-assign]
    return app


def _add_models(app: FastAPI, model: ServedModel, generator: Generator) -> None:
    created = int(time.time())

    def described(name: str) -> dict[str, Any]:
        fields = {"id": name, "object": "model", "created": created, "owned_by": "baton"}
        return fields | {"max_model_len": generator.max_model_len or None}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The names under which the model is served."""
        return {"object": "list", "data": [described(name) for name in model.names]}

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        """One name under which the model is served."""
        model.check_name(name)
        return described(name)


def _add_metrics(app: FastAPI, exposition: Exposition) -> None:
    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus metrics of this router process."""
        body, content_type = exposition.render(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    if status == 405:
        allowed = (getattr(error, "headers", None) or {}).get("allow", "GET").split(", ")
        return await _on_error(request, MethodNotAllowed(f"This path takes {' and '.join(allowed)}", allowed))
    return await _on_error(request, NotFound("There is nothing at this path: GET /openapi.json lists all paths"))


async def _on_error(request: Request, error: Exception) -> Response:
    known = error if isinstance(error, BatonError) else BatonError("internal error")
    headers = {name.decode(): value.decode() for name, value in error_headers(known)}
    return JSONResponse(error_object(known), known.status, headers)
