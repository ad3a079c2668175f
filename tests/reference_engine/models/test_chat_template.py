"""Chat templates: the helpers that templates expect, and the sandbox they run in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from reference_engine.models.chat_template import ChatTemplate
from reference_engine.models.errors import ChatTemplateError, ChatTemplateMissing, ModelLoadError

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is 1 < 2 & 'so'? Größe 漢"},
    {"role": "assistant", "content": "Yes."},
]
TEMPLATES = [
    "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}",
    "{{ bos_token }}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
    "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "    {% if tools is none %}\n    no tools\n    {% endif %}\nend",
    "{{ extra }} {{ dict(a=1)['a'] }} {{ messages | length }} {{ messages | map(attribute='role') | join(',') }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_like_transformers(source: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template(
        conversations=[CHAT], chat_template=source, add_generation_prompt=prompt, bos_token="<s>", extra="x"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(CHAT, prompt, extra="x") == theirs[0]


def test_strftime_now() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}).render([])
    assert abs((datetime.now() - datetime.strptime(rendered, "%Y-%m-%d")).days) <= 1


def test_no_template() -> None:
    with pytest.raises(ChatTemplateMissing, match="has no chat template"):
        ChatTemplate(None, {}).render(CHAT)
    assert issubclass(ChatTemplateMissing, ModelLoadError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused the messages: roles must alternate"),
        ("{% for %}", "chat template"),
        ("{{ 1 / 0 }}", "failed"),
        ("{{ messages[0].content + 5 }}", "failed"),
        ("{{ missing.field }}", "chat template"),
    ],
)
def test_a_template_that_fails(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source, {}).render(CHAT)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ ''.format.__self__ }}",
        "{% for i in range(10000000) %}x{% endfor %}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    chat = [dict(m) for m in CHAT]
    try:
        rendered = ChatTemplate(attack, {}).render(chat)
    except ChatTemplateError:
        rendered = ""
    assert rendered == "", "an unsafe attribute reads as undefined, an unsafe call is refused"
    assert chat == CHAT


def test_objects_do_not_reach_the_template() -> None:
    class Secret:
        def __str__(self) -> str:
            return "leaked"

    rendered = ChatTemplate("{{ thing }} {{ messages[0].content }}", {}).render(
        [{"role": "user", "content": Secret()}], thing=Secret()
    )
    assert rendered == "<Secret> <Secret>"


def test_the_messages_cannot_be_overridden_by_a_keyword() -> None:
    template = ChatTemplate("{{ messages | length }} {{ add_generation_prompt }}", {})
    assert template.render(CHAT, **{"tools": []}) == "3 True"
