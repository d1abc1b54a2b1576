from router.placing.expected_blocks import MAX_BLOCKS, TURN_S, ExpectedBlocks


def test_expected_blocks_lengthen_a_prefix() -> None:
    expected = ExpectedBlocks()
    assert expected.extend("abcd", 1, 0.0) == 1
    expected.add("abc", 0.0)
    assert [expected.extend("abcd", num_held, 0.0) for num_held in range(5)] == [3, 3, 3, 3, 4]
    assert expected.extend("ab", 0, 0.0) == 2
    assert expected.extend("xbc", 0, 0.0) == 0


def test_what_never_comes_is_forgotten() -> None:
    expected = ExpectedBlocks()
    expected.add("ab", 100.0)
    expected.add("cd", 105.0)
    for now_s in (106.0, 107.0, 100.0 + TURN_S, 99.9 + 2 * TURN_S):
        assert [expected.extend(blocks, 0, now_s) for blocks in ("ab", "cd")] == [2, 2]
    assert [expected.extend(blocks, 0, 100.0 + 2 * TURN_S) for blocks in ("ab", "cd")] == [0, 0]
    expected.add("ab", 200.0)
    assert expected.extend("ab", 0, 200.0 + 2 * TURN_S) == 0  # nobody has looked meanwhile


def test_it_is_bounded() -> None:
    expected = ExpectedBlocks()
    for start in range(0, 4 * MAX_BLOCKS, 1000):
        expected.add(range(start, start + 1000), 0.0)
    assert len(expected._young) == MAX_BLOCKS


def test_a_prefix_that_is_expected_already_costs_a_few_looks() -> None:
    class Block(int):
        num_looks = 0

        def __hash__(self) -> int:
            Block.num_looks += 1
            return int(self)

    expected, chain = ExpectedBlocks(), list(map(Block, range(1000)))
    expected.add(chain[:900], 0.0)
    Block.num_looks = 0
    expected.add(chain, 0.0)
    assert Block.num_looks < 150
    assert expected.extend(chain, 0, 0.0) == 1000
