import json
import shutil

import pytest

from baton.errors import CheckpointError
from baton.process.settings import FrontFlags
from router.openai.completion_schema import Reader
from router.openai.responses import _complete
from router.openai.responses_schema import parse_responses
from router.openai.sampling import sampling_params
from router.openai.served_model import ServedModel

RECOMMENDED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
OPENAI = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.fixture
def load(model_dirs, tmp_path):
    def load(defaults="model", **recommended):
        directory = shutil.copytree(model_dirs["chatml"], tmp_path / "model", dirs_exist_ok=True)
        path = directory / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True} | recommended))
        return ServedModel.load(FrontFlags(model=str(directory), sampling_defaults=defaults)).facts

    return load


def drawn(facts, **given):
    body = Reader().parse(json.dumps({"model": "m", "prompt": "x"} | given).encode())
    params = sampling_params(body, 1, facts, 512, None)
    return {name: getattr(params, name) for name in OPENAI}


@pytest.mark.parametrize(
    ("defaults", "recommended", "wanted"),
    [
        ("model", RECOMMENDED, RECOMMENDED),
        ("openai", RECOMMENDED, OPENAI),
        ("model", {"temperature": None, "top_k": -1}, OPENAI),
        ("model", {"top_k": 50, "temperature": 0}, OPENAI | {"top_k": 50, "temperature": 0.0}),
    ],
)
def test_missing_parameters_are_taken_from_the_model(load, defaults, recommended, wanted):
    facts = load(defaults, **recommended)
    assert drawn(facts) == wanted
    assert drawn(facts, **OPENAI) == OPENAI
    assert drawn(facts, temperature=0, top_k=-1) == wanted | {"temperature": 0.0, "top_k": 0}


def test_responses_return_the_values_that_were_used(load):
    body = parse_responses(json.dumps({"model": "m", "input": "x", "top_p": 0.5}).encode())
    body = _complete(body, load(**RECOMMENDED).sampling)
    assert (body.temperature, body.top_p) == (0.6, 0.5)


@pytest.mark.parametrize(("name", "value"), [("temperature", "hot"), ("top_p", 0), ("top_k", 1e12), ("min_p", True)])
def test_an_invalid_generation_config_is_an_error_that_names_the_field(load, name, value):
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name} must be a number from"):
        load(**{name: value})
