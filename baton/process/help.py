"""How `--help` shows the flags of commands that define them with argparse alone: with their types and defaults."""

import argparse


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default to each description that does not mention one, and names values by their type."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        if not action.option_strings or default in (None, "", False, 0, argparse.SUPPRESS) or "default" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})" if shown else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "kind", action.type)  # of a `bounds.Bounded`
        return (kind if isinstance(kind, type) else str).__name__.upper()
