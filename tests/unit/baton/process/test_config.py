"""Flags, environment and defaults become one typed config, and back."""

import argparse

import pytest

from baton.errors import ConfigError
from baton.process.config import add_flags, from_args, parse_bytes, to_args
from baton.process.settings import FleetConfig, NodeConfig, RouterConfig, misspelt


def parse(config, argv=(), env=None):
    parser = argparse.ArgumentParser()
    add_flags(parser, config)
    return from_args(config, parser.parse_args(list(argv)), env or {})


def test_a_flag_overrides_the_environment_which_overrides_the_default():
    env = {"BATON_PREFILL": "2", "BATON_DECODE": "3"}
    config = parse(FleetConfig, ["--prefill", "4"], env)
    assert (config.prefill, config.decode, config.routers) == (4, 3, 1)


@pytest.mark.parametrize("config", [FleetConfig, NodeConfig, RouterConfig])
def test_defaults_need_no_arguments(config):
    assert parse(config) == config()
    assert to_args(config()) == []


def test_to_args_gives_flags_that_parse_to_an_equal_config():
    config = FleetConfig(served_model_name=("a", "b"), colocated=True, prefill=2, kv_memory="1GiB")
    assert parse(FleetConfig, to_args(config)) == config


@pytest.mark.parametrize(
    ("argv", "env", "expected"),
    [([], "", None), (["--deterministic"], "off", True), (["--no-deterministic"], "", False), ([], "off", False)],
)
def test_an_optional_bool_is_unset_by_default(argv, env, expected):
    config = parse(NodeConfig, argv, {"BATON_DETERMINISTIC": env})
    assert config.deterministic is expected
    assert parse(NodeConfig, to_args(config)) == config


def test_several_values_from_the_environment_are_separated_by_commas():
    assert parse(RouterConfig, env={"BATON_SERVED_MODEL_NAME": "a,b"}).served_model_name == ("a", "b")


def test_secrets_come_only_from_the_environment():
    config = parse(RouterConfig, env={"BATON_API_KEY": "k", "BATON_SERVICE_TOKEN": "t"})
    assert (config.api_key, config.service_token) == ("k", "t")
    assert "k" not in to_args(config)
    assert "api_key='k'" not in repr(config)
    with pytest.raises(SystemExit):
        parse(RouterConfig, ["--service-token", "t"])


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"BATON_PREFILL": "two"}, "--prefill (BATON_PREFILL): 'two' is not a valid int"),
        ({"BATON_MAX_TTFT_S": "-1"}, "--max-ttft-s (BATON_MAX_TTFT_S): '-1' is not a number of seconds, 0 or more"),
        ({"BATON_MAX_TTFT_S": "nan"}, "--max-ttft-s (BATON_MAX_TTFT_S): 'nan' is not a number of seconds, 0 or more"),
        ({"BATON_MAX_TTFT_S": "inf"}, "--max-ttft-s (BATON_MAX_TTFT_S): 'inf' is not a number of seconds, 0 or more"),
        (
            {"BATON_TRANSPORT": "pigeon"},
            "--transport (BATON_TRANSPORT): 'pigeon' is not one of auto, cuda, shm, ucx, tcp",
        ),
        ({"BATON_BLOCK_SIZE": "0"}, "--block-size (BATON_BLOCK_SIZE) must be at least 1, not 0"),
        ({"BATON_MAX_NUM_SEQS": "-1"}, "--max-num-seqs (BATON_MAX_NUM_SEQS) must be at least 1, not -1"),
        (
            {"BATON_MAX_NUM_BATCHED_TOKENS": "0"},
            "--max-num-batched-tokens (BATON_MAX_NUM_BATCHED_TOKENS) must be at least 1, not 0",
        ),
        ({"BATON_MAX_MODEL_LEN": "-1"}, "--max-model-len (BATON_MAX_MODEL_LEN) must be at least 0, not -1"),
        ({"BATON_NUM_THREADS": "-2"}, "--num-threads (BATON_NUM_THREADS) must be at least 0, not -2"),
        ({"BATON_PORT": "65536"}, "--port (BATON_PORT) must be at most 65535, not 65536"),
        ({"BATON_KV_MEMORY": "lots"}, "--kv-memory: 'lots' is not a size: write 512MiB, 4GiB or a number of bytes"),
        ({"BATON_COLOCATED": "maybe"}, "--colocated (BATON_COLOCATED): 'maybe' is neither true nor false"),
    ],
)
def test_an_invalid_value_is_reported_with_what_is_expected(env, expected):
    with pytest.raises(ConfigError) as error:
        parse(FleetConfig, env=env)
    assert error.value.message == expected


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("colocated", "On", True),
        ("transport", "tcp", "tcp"),
        ("block_size", "1", 1),
        ("port", "65535", 65535),
        ("max_ttft_s", "0", 0.0),
    ],
)
def test_values_are_converted_from_the_environment(flag, text, value):
    assert getattr(parse(FleetConfig, env={f"BATON_{flag.upper()}": text}), flag) == value


@pytest.mark.parametrize(
    ("text", "expected"), [("512MiB", 512 * 2**20), ("4g", 4 * 2**30), ("1.5GB", 3 * 2**29), ("4096", 4096)]
)
def test_sizes_are_parsed(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "4 parsecs", "-", "inf", "-5MiB", "0", "nan"])
def test_an_invalid_size_is_an_error(text):
    with pytest.raises(ConfigError, match=r"--kv-memory: .* is not a size"):
        parse_bytes(text)


def test_only_misspelt_variables_are_reported():
    fine = {"BATON_DECODE": "2", "BATON_HOME": "/h", "BATON_API_KEY_FILE": "k", "BATON_SERVICE_HOST": "of Kubernetes"}
    assert misspelt(fine | {"BATON_FAULTS": "f", "BATON_DIE_WITH_PARENT": "1", "PATH": "/bin"}) == []
    assert misspelt({"BATON_DECOD": "2", "BATON_MAX_MODEL_LENGTH": "9"}) == [
        "BATON_DECOD is unknown: did you mean BATON_DECODE?",
        "BATON_MAX_MODEL_LENGTH is unknown: did you mean BATON_MAX_MODEL_LEN?",
    ]
