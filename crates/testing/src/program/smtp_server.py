"""A mail server for tests: prints its port, then one line of JSON for each mail."""

import email
import email.policy
import json
import socket
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

kind, password = sys.argv[1:3]


class Handler:
    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        user = session.auth_data.login.decode() if session.auth_data else None
        print(
            json.dumps(
                {
                    "from": envelope.mail_from,
                    "to": envelope.rcpt_tos,
                    "user": user,
                    "tls": session.ssl is not None or kind == "implicit",
                    "subject": mail["subject"],
                    "headers": {name.lower(): str(value) for name, value in mail.items()},
                    "text": mail.get_content(),
                }
            ),
            flush=True,
        )
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"backstay", password.encode())
    # What is not handled here is answered by the library.
    return AuthResult(success=good, handled=good, auth_data=data if good else None)


def context():
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain("leaf.pem", "leaf.key")
    return made


login = {"authenticator": authenticate, "auth_required": kind != "plain"}
if kind == "starttls":
    options = {"tls_context": context(), "require_starttls": True, "auth_require_tls": True, **login}
elif kind == "implicit":
    options = {"auth_require_tls": False, **login}
else:
    options = {}


class Server(Controller):
    def factory(self):
        return SMTP(Handler(), hostname="mail.test", **options)


arguments = {"ssl_context": context()} if kind == "implicit" else {}
# A free port is found by trying: the library wants to know it beforehand.
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = Server(Handler(), hostname="127.0.0.1", port=port, **arguments)
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop()
