"""ttrpc for asyncio: containerd's RPC over unix sockets, as a codec without I/O, a server and a client.

What is here: the frames and streams of ttrpc 1.2 (unary and streaming), its limits, who may say what when,
and a server and a client on raw non-blocking unix sockets that leave every frame in the kernel until it is
taken care of. What is not: services (whoever serves brings its method tables), what errors mean
(`status_of`), what a journal records (`Journal`), where sockets come from, reconnecting, logging.

    class Echo:
        async def echo(self, request: Text, context: CallContext) -> Text:
            return Text(text=request.text)

    METHODS = {"Echo": Method(Text, Echo.echo)}

    server = Server({"example.Echo": Service(METHODS, Echo())})
    server.listen(listening_socket)

    async with await Client.connect("/run/example.sock", timeout_s=1) as client:
        answer = await client.call("example.Echo", "Echo", Text(text="hello"), Text, timeout_s=5)

Layers, each importing only those before it:

    _errors, _frames, _state, _events   the vocabulary
    _connection                         the protocol of one connection: bytes in, events out
    _marks                              what the kernel keeps of a connection for a successor
    _socket                             frames over one socket: peek, consume, write
    _calls, _stream                     what handlers and callers hold
    _server_connection                  one connection of a server, and its calls
    _server, _client, _link             the roles
    relay                               a server that hands calls on: imported by its own name, by whoever needs it

The protocol is specified by PROTOCOL.md of github.com/containerd/ttrpc; where that is silent this package
does what the Go implementation (v1.2.7) does. Everything belongs to the event loop in which it was made, and
there may be one such thread in a process.
"""

from common.ttrpc._calls import (
    CallContext,
    CallObserver,
    Method,
    PeerCredentials,
    RelayedMethod,
    Service,
    StreamMethod,
    only_root,
)
from common.ttrpc._client import Client, ClientStream
from common.ttrpc._connection import Connection, Role
from common.ttrpc._errors import (
    ConnectionLost,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    StatusCode,
    StatusError,
)
from common.ttrpc._events import DataReceived, Event, RequestReceived, ResponseReceived, StreamRefused
from common.ttrpc._frames import MAX_DATA_SIZE, Frame, FrameBuffer, OversizedFrame, encode_frame
from common.ttrpc._journal import Journal, NullJournal, Replay, ReplayedRequest
from common.ttrpc._marks import SpilledFrame
from common.ttrpc._server import Server
from common.ttrpc._state import StreamState
from common.ttrpc._stream import MessageStream, ServerStream

__all__ = [
    "MAX_DATA_SIZE",
    "CallContext",
    "CallObserver",
    "Client",
    "ClientStream",
    "Connection",
    "ConnectionLost",
    "DataReceived",
    "Event",
    "Frame",
    "FrameBuffer",
    "Journal",
    "LocalProtocolError",
    "MessageStream",
    "Method",
    "NullJournal",
    "OversizedFrame",
    "PeerCredentials",
    "ProtocolError",
    "RelayedMethod",
    "RemoteProtocolError",
    "Replay",
    "ReplayedRequest",
    "RequestReceived",
    "ResponseReceived",
    "Role",
    "Server",
    "ServerStream",
    "Service",
    "SpilledFrame",
    "StatusCode",
    "StatusError",
    "StreamMethod",
    "StreamRefused",
    "StreamState",
    "encode_frame",
    "only_root",
]
