import json
from datetime import datetime

import pytest
from transformers import AutoTokenizer

from baton.errors import CheckpointError, ContextLengthExceeded, InvalidRequest
from baton.text.chat_template import ChatTemplate
from baton.text.tokenizer import Tokenizer

CONVERSATIONS = [
    [{"role": "user", "content": "Hi!"}],
    [{"role": "user", "content": "  two\n\n spaces  "}, {"role": "assistant", "content": "<b>&amp;</b> \"'"}],
    [
        {"role": "user", "content": "你好 🎉"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "{{ 7 * 7 }}"},
    ],
]


def with_system(conversation):
    return [{"role": "system", "content": " Be brief. "}, *conversation]


def render(template, messages, max_chars=10_000):
    return template.render(messages, max_chars)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", ["chatml", "llama3", "mistral"])
def test_text_and_tokens_equal_transformers(model_dirs, style, conversation):
    messages = conversation if style == "mistral" else with_system(conversation)
    reference = AutoTokenizer.from_pretrained(model_dirs[style])
    rendered = render(ChatTemplate.load(model_dirs[style]), messages)
    assert rendered == reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Tokenizer.load(model_dirs[style]).encode_chat(rendered) == reference.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Größe <b>",
        "parameters": {"type": "object", "properties": {"b": {}, "a": {}}},
    },
}


@pytest.mark.parametrize("in_files", [False, True])
def test_tools_equal_transformers(model_dirs, tmp_path, in_files):
    """Tools are rendered by the only template, or by a separate one for tools."""
    messages = [{"role": "user", "content": "Hi!"}]
    config = json.loads((model_dirs["mistral"] / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "none"},
        {"name": "tool_use", "template": "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"},
    ]
    for file in model_dirs["mistral"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if in_files:
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        assert (tmp_path / "additional_chat_templates").is_dir()
    for path in (model_dirs["llama3"], tmp_path):
        reference, template = AutoTokenizer.from_pretrained(path), ChatTemplate.load(path)
        for tools in ([TOOL, TOOL], None):
            expected = reference.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
            assert template.render(messages, 10_000, tools) == expected


@pytest.mark.parametrize("style", ["chatml", "llama3", "mistral"])
def test_special_tokens_of_clients_equal_transformers_sanitized(model_dirs, style):
    reference, tokenizer = AutoTokenizer.from_pretrained(model_dirs[style]), Tokenizer.load(model_dirs[style])
    tokens = tokenizer.control_tokens
    for name in reference.all_special_tokens:
        content = f"a {name}b\n{name} {name}"
        marks = tokens.choose_marks([content])
        rendered = render(
            ChatTemplate.load(model_dirs[style]), [{"role": "user", "content": tokens.mark(content, marks)}]
        )
        expected = reference.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        assert tokenizer.encode_chat(rendered, marks) == expected


ODD_TEMPLATES = [
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{{ undefined_thing }}{{ bos_token }}{{ eos_token }}{{ tools }}{{ documents }}{{ messages[0].name is defined }}",
    "  {% if true %}\n    x\n  {% endif %}\n\n{# comment #}\n y \n",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0]['content']) | upper }}",
    "{{ messages[0].content.split('</think>')[-1].lstrip('\\n') }}",
    "{% set ns = namespace(self=1, b=2) %}{% set ns.b = 3 %}{{ ns.b }}{{ dict(a=1) }}",
    "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|{{ m.thinking is defined }}{% endfor %}",
]


@pytest.mark.parametrize("source", ODD_TEMPLATES)
def test_odd_templates_equal_transformers(model_dirs, source):
    reference = AutoTokenizer.from_pretrained(model_dirs["llama3"])
    messages = [{"role": "user", "content": "<think>é</think>\n<&>", "name": None}, {"role": "user", "content": "b"}]
    messages += [{"role": "assistant", "content": "c", "reasoning_content": "why"}]
    expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate(source, {"bos_token": reference.bos_token, "eos_token": reference.eos_token})
    assert render(template, messages) == expected


def test_strftime_now_uses_the_given_clock():
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}, now=lambda: datetime(2001, 2, 3))
    assert render(template, []) == "2001-02-03"


def test_a_templates_own_error_reaches_the_client():
    template = ChatTemplate("{{ raise_exception('roles must alternate' + 'x' * 1000) }}", {})
    with pytest.raises(InvalidRequest, match="roles must alternate") as raised:
        render(template, [])
    assert raised.value.param == "messages"
    assert len(raised.value.message) <= 300


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5]['content'] }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_failing_template_fails_only_its_request(source):
    with pytest.raises(InvalidRequest) as raised:
        render(ChatTemplate(source, {}), [{"role": "user", "content": "secret"}])
    assert "secret" not in raised.value.message


def test_tools_that_a_template_cannot_show_are_not_blamed_on_messages():
    template = ChatTemplate("{% for tool in tools or [] %}{{ 'of ' + tool.parameters.type }}{% endfor %}", {})
    asked = [{"role": "user", "content": "x"}]
    assert template.render(asked, 100) == ""
    with pytest.raises(InvalidRequest, match="cannot render these messages with these tools"):
        template.render(asked, 100, [{"parameters": {"type": ["string", "null"]}}])


def test_the_size_of_a_rendered_text_is_bounded():
    with pytest.raises(ContextLengthExceeded):
        render(ChatTemplate("{% for i in range(99999) %}aaaaaaaaaa{% endfor %}", {}), [], max_chars=1000)


def test_the_time_of_rendering_is_bounded(monkeypatch):
    monkeypatch.setattr("baton.text.chat_template.TIMEOUT_S", -1.0)
    with pytest.raises(InvalidRequest, match="too long"):
        render(ChatTemplate("a", {}), [])


def test_the_template_file_overrides_the_config(model_dirs, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert render(ChatTemplate.load(tmp_path), []) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert render(ChatTemplate.load(tmp_path), []) == "file"


def test_a_model_can_lack_a_template(tmp_path):
    assert ChatTemplate.load(tmp_path) is None


@pytest.mark.parametrize("given", [[{"name": "rag", "template": "x"}], [1], 5, {"default": 1}, "{% if %}", "{{"])
def test_a_broken_template_is_named(tmp_path, given):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        ChatTemplate.load(tmp_path)


def test_token_names_are_read_from_special_tokens_map(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    )
    assert render(ChatTemplate.load(tmp_path), []) == "<s></s>"
