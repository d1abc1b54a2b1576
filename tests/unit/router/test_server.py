import shutil

import pytest

from baton.errors import ConfigError
from baton.process.settings import RouterConfig
from router.server import load


def config(model_dir, **values):
    return RouterConfig(model=str(model_dir), **{"port": 0, **values})


def test_the_names_default_to_the_directorys(model_dirs):
    loaded = load(config(model_dirs["llama3"]))
    loaded.listener.close()
    assert loaded.model.names == ("llama3",)
    assert loaded.model.facts.max_model_len == 512


def test_the_smaller_limit_holds(model_dirs):
    loaded = load(config(model_dirs["llama3"], max_model_len=100))
    loaded.listener.close()
    assert loaded.model.facts.max_model_len == 100


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "/no/such/dir"}, "/no/such/dir"),
        ({"host": "0.0.0.0"}, "without API keys"),
        ({"host": "::"}, "without API keys"),
        ({"host": "no.such.host.invalid", "api_key": "k"}, r"no\.such\.host"),
        ({"host": "192.0.2.1", "api_key": "k"}, r"192\.0\.2\.1"),
        ({"api_key_file": "/no/such/file"}, "--api-key-file"),
    ],
)
def test_a_bad_flag_is_a_config_error(model_dirs, values, said):
    with pytest.raises(ConfigError, match=said):
        load(
            config(**{"model_dir": model_dirs["chatml"]} | values) if "model" not in values else RouterConfig(**values)
        )


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_broken_file_of_the_model_is_named(model_dirs, tmp_path, name):
    path = shutil.copytree(model_dirs["chatml"], tmp_path / "model")
    (path / name).write_text("{")
    with pytest.raises(ConfigError, match=name):
        load(config(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"vocab_size": "many"}', "vocab_size"),
        ('{"vocab_size": 1000000000000000000000}', "vocab_size must be a number of tokens"),
        ('{"max_position_embeddings": true}', "max_position_embeddings must be a number of tokens"),
        ("[]", "config.json"),
    ],
)
def test_a_nonsensical_config_is_named(model_dirs, tmp_path, text, said):
    path = shutil.copytree(model_dirs["chatml"], tmp_path / "model")
    (path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(config(path))
