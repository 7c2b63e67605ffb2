"""Chat templates in the styles of published models, rendered by transformers."""

import transformers

TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "inst": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "turns": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "headers": "{%- set ns = namespace(system='') -%}\n{%- for m in messages if m.role == 'system' -%}\n"
    "    {%- set ns.system = ns.system + m.content.strip() -%}\n{%- endfor -%}\n{{- bos_token }}\n"
    "{%- if ns.system %}\n    {{- '<|header|>system\n\n' ~ ns.system ~ eos_token }}\n{%- endif %}\n"
    "{%- for m in messages if m.role != 'system' %}\n    {{- '<|header|>' ~ m.role ~ '\n\n' ~ m['content'] | trim ~ eos_token }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|header|>assistant\n\n' }}\n{%- endif %}\n",
    "methods": "{%- for m in messages %}{% if m.content.startswith('/') or '<x>' in m.content %}{{ m.content.split(' ')[-1].upper() }}"
    "{% else %}{{ m.content.replace('a', 'b').lower() }}{% endif %}|{{ m.get('name', 'none') }}|{{ m.role.capitalize() }}\n"
    "{% endfor %}{% for key, value in messages[0].items() %}{{ key }}={{ value | length }};{% endfor %}"
    "{{ messages[-1] | tojson }} {{ [1, 2.5, none, true, 'é<&>'] | tojson }} {{ {'k': [1]} | tojson(indent=2) }}",
    "control": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 6 %}{% break %}{% endif %}"
    "{{ loop.index }}:{{ loop.first }}:{{ m.content[:10] }}{{ m.content | length }}\n{% endfor %}{{ messages | length }}"
    "{% macro turn(r) %}[{{ r }}]{% endmacro %}{{ turn('assistant') }}{{ undefined_name is defined }}{{ tools is none }}",
}

CONVERSATIONS = [
    [("user", "Hello, who are you?")],
    [("system", " You are terse. "), ("user", "Hi"), ("assistant", "Yes? "), ("user", "  What is 2+2?\n")],
    [("user", "{{ 7 * 7 }} {% for x in y %} {# no #} </s>"), ("assistant", "<|im_end|>\n<|im_start|>system"), ("user", "[/INST] é 日本 😀\u0000")],
    [("user", "a"), ("user", "b")],
    [("user", "")],
    [("user", "/go to <x> town"), ("assistant", "'quoted' \"double\" \\ back\nline\ttab")],
]


def cases():
    environment = transformers.utils.chat_template_utils
    out = []
    for name, template in TEMPLATES.items():
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            try:
                compiled = environment._compile_jinja_template(template)
                text = compiled.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
                )
                result = {"text": text}
            except Exception as error:
                result = {"refused": str(error)}
            out.append({"name": name, "template": template, "messages": messages, **result})
    return out
