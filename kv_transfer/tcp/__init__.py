"""Plain TCP sockets, read and written in the event loop."""
