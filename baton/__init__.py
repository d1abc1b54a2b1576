"""The spine of Baton: what every service shares and none of them owns. Loads neither torch nor numpy."""

__version__ = "0.1.0"
