import asyncio

import pytest

from tests.unit.router.serving.one_attempt import Case


@pytest.fixture
async def case() -> Case:
    made = Case()
    await asyncio.sleep(0)
    return made
