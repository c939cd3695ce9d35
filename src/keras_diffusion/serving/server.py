"""Runs the server: binds the port, then lets the worker import Keras."""

import asyncio
import logging
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_diffusion.serving.app import make_app
from keras_diffusion.serving.service import Service
from keras_diffusion.serving.worker import Worker

STOP = 5  # seconds that answers under way are given when the server stops


def bind(host, port):
    """Returns a socket that listens at an address.

    Raises:
        ValueError: If it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError, UnicodeError) as error:
        message = f"It cannot listen there: {error}. Give another --port or --host. Received: {host!r}, port {port}"
        raise ValueError(message) from error


def serve(listener, store, models, adapters, limits, rules, model, secret=()):
    """Serves until the process is asked to end.

    Args:
        listener: A socket that listens.
        store: The `Store`.
        models: The `Models`.
        adapters: The `Adapters`.
        limits: The `Limits`.
        rules: The `Rules`.
        model: The name of the model of jobs that name none.
        secret: Names of folders that clients do not get to see.
    """
    worker = Worker(store, models, secret)
    server = make_server(make_app(Service(store, worker, adapters, limits, model), rules), limits)
    worker.start()
    try:
        server.run(sockets=[listener])
    finally:
        worker.stop()
        store.close()


def make_server(app, limits):
    """Returns the `uvicorn.Server` of an application, with time limits for those who send slowly."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=patient(limits.seconds_to_send),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=limits.max_connections,
            timeout_graceful_shutdown=STOP,
        )
    )


def log_handler():
    """Returns what writes the log; warnings about prompts, which quote them, are not in it."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not record.name.startswith("keras_diffusion.prompts"))
    return handler


def patient(seconds):
    """Returns the protocol of connections, with a time limit for the head of a request."""

    class Protocol(H11Protocol):
        timer = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._start()

        def data_received(self, data):
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop()
            elif self.timer is None and (self.cycle is None or self.cycle.response_complete):
                self._start()

        def connection_lost(self, exc):
            self._stop()
            super().connection_lost(exc)

        def _start(self):
            self.timer = asyncio.get_running_loop().call_later(seconds, self._close)

        def _stop(self):
            if self.timer:
                self.timer.cancel()
            self.timer = None

        def _close(self):
            if not self.transport.is_closing():
                self.transport.close()

    return Protocol
