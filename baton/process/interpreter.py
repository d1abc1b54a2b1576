"""How this Python was compiled. Without profile-guided optimization calls of Python take half as long again."""

import sys
import sysconfig


def is_optimized() -> bool:
    """Whether it was compiled with that, as far as can be told: those of distributions, in /usr, are and do not say."""
    return sys.base_prefix == "/usr" or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
