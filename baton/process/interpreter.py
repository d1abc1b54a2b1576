"""Whether this Python was compiled with profile-guided optimization. Without it, calls take half as long again."""

import sys
import sysconfig


def is_optimized() -> bool:
    """Whether it was, as far as can be told: Pythons of distributions, in /usr, were, but may not say so."""
    return sys.base_prefix == "/usr" or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
