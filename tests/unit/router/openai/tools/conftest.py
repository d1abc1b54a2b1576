import pytest

from baton.process.settings import FrontFlags
from router.openai.served_model import ServedModel

TEMPLATE = (
    "{% for tool in tools or [] %}{{ '[' ~ tool | tojson ~ ']' }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name ~ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think></think>{% endif %}"
)


@pytest.fixture(scope="module")
def served_model(model_dirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("tools")
    for file in model_dirs["chatml"].iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "config.json").write_text('{"vocab_size": 1024, "max_position_embeddings": 4096}')
    return ServedModel.load(FrontFlags(model=str(path), served_model_name=("tiny",)))
