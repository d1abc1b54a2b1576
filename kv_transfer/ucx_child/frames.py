"""The frames that a node and its UCX process exchange over a Unix socket.

A link is a UCX connection: the node numbers those that it opens from 1 up, the child those that it accepts from -1
down. The node owns the areas of the shared region. The child touches an area only between the order that names it and
the report that it is done: Ended, or Gone for the whole link.
"""

import msgspec


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The base of all frames."""


class Listen(Frame, frozen=True):
    """Accept connections; answered by Listening."""


class Connect(Frame, frozen=True):
    """Open a link and send the secret over it; answered by Connected or Gone."""

    link: int
    host: str
    port: int
    secret: bytes


class Admit(Frame, frozen=True):
    """Answers a Hello: welcome the link. Close refuses it."""

    link: int


class Beat(Frame, frozen=True):
    """Send a heartbeat to the other end of the link."""

    link: int


class Close(Frame, frozen=True):
    """Close the link; answered by Gone."""

    link: int


class Send(Frame, frozen=True):
    """Send an area as one message; answered by Ended."""

    message: int
    link: int
    tag: int
    start: int
    num_bytes: int


class Receive(Frame, frozen=True):
    """Answers Waiting: receive the message into an area; answered by Ended."""

    message: int
    link: int
    start: int
    num_bytes: int


class Drop(Frame, frozen=True):
    """Answers Waiting: discard the message."""

    message: int


class Alive(Frame, frozen=True):
    """A heartbeat of the child: it runs, and UCX is not stuck. The first one says that the child has started."""


class Listening(Frame, frozen=True):
    """Connections are accepted at this port."""

    port: int


class Connected(Frame, frozen=True):
    """The other end has welcomed the secret."""

    link: int


class Hello(Frame, frozen=True):
    """Somebody has opened a link and sent this secret; answered by Admit or Close."""

    link: int
    secret: bytes


class Heard(Frame, frozen=True):
    """A heartbeat has come over the link."""

    link: int


class Waiting(Frame, frozen=True):
    """A message has arrived or been announced; answered by Receive or Drop."""

    message: int
    tag: int
    num_bytes: int


class Ended(Frame, frozen=True):
    """The message's area is no longer touched. All of the message was transferred, unless there is an error."""

    message: int
    error: str


class Gone(Frame, frozen=True):
    """The link is closed, and none of its messages' areas is touched any more. Their Ended frames came before this."""

    link: int
    reason: str = ""


Order = Listen | Connect | Admit | Beat | Close | Send | Receive | Drop  # sent to the child
Report = Alive | Listening | Connected | Hello | Heard | Waiting | Ended | Gone  # sent to the node
