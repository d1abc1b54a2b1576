"""What a client's grammar may cost. Real schemas stay far below; what does not is refused, or ends its request.

Compiling is bounded from outside (`jail`), as not all of it counts its own fuel. A mask is bounded by fuel, to
some tens of milliseconds; a request that needs such masks again and again is ended by `masks`.
"""

import llguidance

MAX_TEXT_BYTES = 64 * 1024
COMPILE_CPU_S = 0.4  # conversion, compiling and a few masks
# Only a starved fork takes longer than its processor time. To end it and begin anew takes longer still.
COMPILE_WALL_S = 10.0
COMPILE_ADDRESS_BYTES = 256 * 2**20  # beyond the compiler's own
MAX_COMPILED_BYTES = 32 * 2**20  # resident; each running request has a copy of a part of it
# A quarter of what a node's threads have for the same work.
COMPILE_STACK_BYTES = 2 * 2**20
MASK_STACK_BYTES = 512 * 1024
MAX_MASK_CPU_S = 0.1


def parser_limits() -> llguidance.LLParserLimits:
    """Fuel for llguidance itself."""
    return llguidance.LLParserLimits(
        initial_lexer_fuel=500_000,
        max_grammar_size=10_000,
        max_items_in_row=2_000,
        max_lexer_states=10_000,
        step_lexer_fuel=100_000,
        step_max_items=5_000,
        verbose_errors=False,
    )
