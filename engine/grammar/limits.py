"""What a client's grammar may cost. Real schemas stay far below; others are refused, or their request is ended.

Compiling is limited from outside (`jail`), since llguidance's fuel does not cover all of it. A mask is limited by fuel,
to some tens of milliseconds; `masks` ends a request that needs such masks again and again.
"""

import llguidance

MAX_TEXT_BYTES = 64 * 1024
COMPILE_CPU_S = 0.4  # conversion, compiling and a few masks
# Only a fork that gets no processor takes longer than its processor time. Ending it and retrying would take longer.
COMPILE_WALL_S = 10.0
COMPILE_ADDRESS_BYTES = 256 * 2**20  # beyond those of the process that forks
MAX_COMPILED_BYTES = 32 * 2**20  # resident; each running request has a copy of a part of it
# A quarter of the stack that a node's threads have for the same work.
COMPILE_STACK_BYTES = 2 * 2**20
MASK_STACK_BYTES = 512 * 1024
MAX_MASK_CPU_S = 0.1


def parser_limits() -> llguidance.LLParserLimits:
    """The limits that llguidance enforces itself (its "fuel")."""
    return llguidance.LLParserLimits(
        initial_lexer_fuel=500_000,
        max_grammar_size=10_000,
        max_items_in_row=2_000,
        max_lexer_states=10_000,
        step_lexer_fuel=100_000,
        step_max_items=5_000,
        verbose_errors=False,
    )
