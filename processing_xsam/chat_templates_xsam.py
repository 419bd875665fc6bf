"""Formats of a conversation, as jinja templates for `apply_chat_template`: those of the language models that X-SAM uses."""

from __future__ import annotations

_RENDER_CONTENT = """{%- macro render(content) -%}
    {%- if content is string -%}
        {{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{ '<image>\\n' }}
            {%- elif part.type == 'text' -%}
                {{ part.text }}
            {%- else -%}
                {{ raise_exception("content parts must be of type 'text' or 'image', not '" ~ part.type ~ "'") }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

# `generation` encloses what the model writes: it is what training takes its loss on, and it is tokenised apart from
# what follows.
PHI3_CHAT_TEMPLATE = (
    _RENDER_CONTENT
    + """{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{ '<|assistant|>\\n' }}
        {%- generation -%}
            {{ render(message.content) ~ '<|end|>' }}
        {%- endgeneration -%}
        {{ '\\n' }}
    {%- else -%}
        {{ '<|' ~ message.role ~ '|>\\n' ~ render(message.content) ~ '<|end|>\\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|assistant|>\\n' }}
{%- endif -%}
"""
)

QWEN_CHAT_TEMPLATE = (
    _RENDER_CONTENT
    + """{%- for message in messages -%}
    {{ '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
            {{ render(message.content) ~ '<|im_end|>' }}
        {%- endgeneration -%}
        {{ '\\n' }}
    {%- else -%}
        {{ render(message.content) ~ '<|im_end|>\\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
)
