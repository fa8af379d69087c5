"""Starts moto on the port given, one request after the other."""

import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

app = DomainDispatcherApplication(create_backend_app)
one = threading.Lock()


def one_after_the_other(environ, start_response):
    with one:
        return [b"".join(app(environ, start_response))]


run_simple("127.0.0.1", int(sys.argv[1]), one_after_the_other, threaded=True, request_handler=MotoRequestHandler)
