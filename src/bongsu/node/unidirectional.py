"""A connection whose client only listens: it says once who it is, and hears bare pushes.

Source: the Centrifuge client protocol, §16 "Unidirectional transports".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bongsu.node.client import Socket
from bongsu.node.connection import Connection
from bongsu.node.services import Services
from bongsu.node.variants import Form
from bongsu.protocol import errors
from bongsu.protocol.codec.json import JSON_UNIDIRECTIONAL
from bongsu.protocol.errors import Disconnect, Error, ProtocolError
from bongsu.protocol.messages import Command, ConnectRequest, ConnectResult, Reply

# Such a client is sent no error reply; what it would have been told becomes the reason for the end.
_REFUSALS: Final[Mapping[Error, Disconnect]] = {
    errors.ERROR_TOKEN_EXPIRED: errors.CONNECTION_EXPIRED,
    errors.ERROR_EXPIRED: errors.CONNECTION_EXPIRED,
    errors.ERROR_TOO_MANY_REQUESTS: errors.TOO_MANY_REQUESTS,
    errors.ERROR_PERMISSION_DENIED: errors.PERMISSION_DENIED,
}


class UnidirectionalConnection(Connection):
    """Only JSON. Its subscriptions are the server's; pings are sent, and not answered."""

    def __init__(
        self, services: Services, socket: Socket, form: Form, *, transport: str, peer: str = ""
    ) -> None:
        super().__init__(
            services,
            socket,
            JSON_UNIDIRECTIONAL,
            form,
            transport=transport,
            peer=peer,
            emulated=True,  # for its session: a backend names connections by it
            options=services.session_options_without_pong,
        )
        self._opened = False

    def open(self, request: ConnectRequest) -> None:
        """What the client has said. Called once."""
        self._opened = True
        self.take([Command(1, request)])

    def receive(self, frame: str | bytes) -> None:
        """The connect request, where it comes as the first frame. The rest is not listened to."""
        if self._opened or self.is_over():
            return
        try:
            self.open(JSON_UNIDIRECTIONAL.decode_connect(frame))
        except ProtocolError as error:
            self.close(error.disconnect)

    def reply(self, reply: Reply) -> None:
        """There are two: what connect comes to, and why it does not."""
        match reply.result:
            case ConnectResult() as result:
                self.push("", result)
            case Error() as error:
                self.close(_REFUSALS.get(error, errors.INTERNAL_SERVER_ERROR))
