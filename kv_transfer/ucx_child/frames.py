"""What a node and its UCX process say to each other: frames over a Unix socket.

Links are connections: the node numbers those that it opens from 1 up, the child those that it accepts from -1 down.
Areas of the shared region belong to the node; the child touches one between the frame that names it and the frame, or
the end of the link, that says it is done.
"""

import msgspec


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Any of the following."""


class Listen(Frame, frozen=True):
    """Accept connections; answered by Listening."""


class Connect(Frame, frozen=True):
    """Open a link and show the secret; answered by Connected or Gone."""

    link: int
    host: str
    port: int
    secret: bytes


class Admit(Frame, frozen=True):
    """The answer to a Hello that is welcome; Close is the answer to any other."""

    link: int


class Beat(Frame, frozen=True):
    """Tell the other end of the link that this node lives."""

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
    """The answer to Waiting: write the message into an area; answered by Ended."""

    message: int
    link: int
    start: int
    num_bytes: int


class Drop(Frame, frozen=True):
    """The other answer to Waiting: nobody wants the message."""

    message: int


class Alive(Frame, frozen=True):
    """The child works, and UCX has returned; the first one says that it has started."""


class Listening(Frame, frozen=True):
    """Connections are accepted at this port."""

    port: int


class Connected(Frame, frozen=True):
    """The other end has welcomed the secret."""

    link: int


class Hello(Frame, frozen=True):
    """Somebody has opened a link and shown this."""

    link: int
    secret: bytes


class Heard(Frame, frozen=True):
    """A Beat has come."""

    link: int


class Waiting(Frame, frozen=True):
    """A message has come, or the notice of one; answered by Receive or Drop."""

    message: int
    tag: int
    num_bytes: int


class Ended(Frame, frozen=True):
    """The message's area is no longer touched, and all of it has gone through unless there is an error."""

    message: int
    error: str = ""


class Gone(Frame, frozen=True):
    """The link is closed, and none of its messages' areas is touched any more; their Ended frames came before."""

    link: int
    reason: str = ""


Order = Listen | Connect | Admit | Beat | Close | Send | Receive | Drop  # to the child
Report = Alive | Listening | Connected | Hello | Heard | Waiting | Ended | Gone  # to the node
