"""An EC2 on loopback: moto's server, with its answers in the namespaces that Libcloud's driver looks for."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log(self, *_arguments) -> None:
        """Requests carry user data."""


def _with_slash(application, before):
    """EC2's own namespace ends with a slash, and its errors have none, as the driver knows; moto differs in both."""

    def answer(environment, start):
        # The length would be another one; without it the connection's end tells.
        def begin(status, headers, *rest):
            return start(status, [one for one in headers if one[0].lower() != "content-length"], *rest)

        before(parse_qs(environment["QUERY_STRING"]).get("Action", [""])[0])
        text = b"".join(application(environment, begin))
        text = text.replace(b'<Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15">', b"<Response>")
        return [text.replace(b'amazonaws.com/doc/2016-11-15"', b'amazonaws.com/doc/2016-11-15/"')]

    return answer


@contextlib.contextmanager
def ec2(before: Callable[[str], None] = lambda _action: None) -> Iterator[dict[str, object]]:
    """Settings for the driver. ``before`` is called with each request's action, in a thread, and may take its time."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    get_backend("ec2")["123456789012"][
        "us-east-1"
    ]  # loads its images and types, longer than a driver waits when busy
    application = _with_slash(DomainDispatcherApplication(create_backend_app), before)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {
            "region": "us-east-1",
            "host": "127.0.0.1",
            "port": server.server_port,
            "secure": False,
            "signature_version": "4",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
