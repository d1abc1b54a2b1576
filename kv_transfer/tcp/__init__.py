"""The transport over plain TCP sockets, which are read and written in the event loop."""
