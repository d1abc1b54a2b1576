"""The UCX process's main loop without its process, over a UCX in which a request ends when the test says so."""

from types import SimpleNamespace

from kv_transfer.transport import SECRET_BYTES
from kv_transfer.ucx_child import frames
from kv_transfer.ucx_child.server import Server

AREA_BYTES = 4096
SECRET = b"s" * SECRET_BYTES


class UCXError(Exception):
    """ucxx.libucxx.UCXError."""


class Endpoint:
    """An endpoint; a request at it is (operation, buffer, ...), or raises its `error`."""

    def __init__(self):
        self.error, self.on_close, self.is_closed = None, None, False

    def set_close_callback(self, callback):
        self.on_close = callback

    def remove_close_callback(self):
        self.on_close = None

    def close_blocking(self):
        self.is_closed = True

    def __getattr__(self, operation):
        def request(*arguments):
            if self.error:
                raise self.error
            return operation, *arguments

        return request


class UCX:
    """ucxx, its listener and its worker in one."""

    UCXError = UCXError
    UCXXTag = UCXXTagMask = staticmethod(lambda number: number)
    port = 7

    def __init__(self):
        self.endpoints, self.refusal = [], None
        self.arrived, self.num_dropped = 0, 0
        self.UCXEndpoint = self.UCXListener = self

    def create(self, worker, *where, deliver_endpoint=False):
        if deliver_endpoint:
            self.accept = where[1]
            return self
        if self.refusal:
            raise self.refusal
        self.endpoints.append(Endpoint())
        return self.endpoints[-1]

    def tag_probe(self, tag, mask, remove):
        self.arrived -= (matched := self.arrived > 0)
        return SimpleNamespace(matched=matched, sender_tag=SimpleNamespace(value=5), length=AREA_BYTES)

    def tag_recv_with_handle(self, array, message):
        assert array.nbytes < message.length
        self.num_dropped += 1


class Child:
    """A server that is turned by hand. It is the server's worker and the node's end of the socket, too."""

    def __init__(self):
        self.ucx = UCX()
        self.binding = SimpleNamespace(ucx=self.ucx, array=memoryview)
        self.pending, self.reports, self.orders = [], [], []
        self.put, self.progress, self.thoroughly = self.reports.append, lambda: None, lambda: None
        self.server = Server(self, memoryview(bytearray(2 * AREA_BYTES)), self)

    def submit(self, request, on_end, keep):
        self.pending.append((request, on_end))

    def take(self):
        orders, self.orders = self.orders, []
        return orders

    def flush(self):
        return True

    def turn(self, *orders):
        """Execute the orders; return what has been reported since the last turn."""
        self.orders += orders
        self.server._turn()
        reports, self.reports[:] = list(self.reports), []
        return [report for report in reports if report != frames.Alive()]

    def end(self, operation, error="", said=b""):
        """End the oldest request of that kind, which received `said`."""
        entry = next(entry for entry in self.pending if entry[0] and entry[0][0] == operation)
        self.pending.remove(entry)
        if said:
            entry[0][1][:] = said
        entry[1](error)

    def connected(self):
        """Open link 1; it is welcomed. Returns its endpoint."""
        self.turn(frames.Connect(1, "host", 7, SECRET))
        self.end("stream_send")
        self.end("stream_recv", said=b"\x01")
        assert self.turn() == [frames.Connected(1)]
        return self.ucx.endpoints[-1]

    def accepted(self):
        """Somebody connects. Returns the endpoint."""
        if not hasattr(self.ucx, "accept"):
            assert self.turn(frames.Listen()) == [frames.Listening(7)]
        endpoint = Endpoint()
        self.ucx.accept(endpoint)
        self.turn()
        return endpoint

    def waiting(self):
        """A message has arrived. Returns its number."""
        self.ucx.arrived = 1
        (waiting,) = self.turn()
        return waiting.message
