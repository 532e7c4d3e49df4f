"""Event streams as model servers send them, byte for byte: name -> body. `SMALL_STREAMS` leaves out the huge one."""

from __future__ import annotations

OPENAI_CHAT = (
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1754000000,"model":"gpt-test",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1754000000,"model":"gpt-test",'
    b'"choices":[{"index":0,"delta":{"content":"Water"},"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1754000000,"model":"gpt-test",'
    b'"choices":[{"index":0,"delta":{"content":" \xc3\xbcber data: [DONE] \\n\\n \xf0\x9f\x8c\x8a"},'
    b'"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1754000000,"model":"gpt-test",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)

COMPLETIONS = (
    b'data: {"id":"cmpl-1","object":"text_completion","model":"base","choices":[{"index":0,"text":"once",'
    b'"finish_reason":null}]}\n\n'
    b'data: {"id":"cmpl-1","object":"text_completion","model":"base","choices":[{"index":0,"text":" more",'
    b'"finish_reason":"length"}]}\n\n'
    b"data: [DONE]\n\n"
)

RESPONSES = (
    b"event: response.created\n"
    b'data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","status":"in_progress",'
    b'"output":[]}}\n\n'
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":1,"item_id":"msg_1","output_index":0,'
    b'"delta":"Hi"}\n\n'
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":2,"item_id":"msg_1","output_index":0,'
    b'"delta":" you"}\n\n'
    b"event: response.completed\n"
    b'data: {"type":"response.completed","sequence_number":3,"response":{"id":"resp_1","status":"completed",'
    b'"usage":{"input_tokens":3,"output_tokens":2,"total_tokens":5}}}\n\n'
)

ANTHROPIC = (
    b"event: message_start\n"
    b'data: {"type":"message_start","message":{"id":"msg_01","role":"assistant","content":[],'
    b'"usage":{"input_tokens":7}}}\n\n'
    b"event: content_block_start\n"
    b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b"event: ping\n"
    b'data: {"type": "ping"}\n\n'
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Sluice"}}\n\n'
    b"event: content_block_stop\n"
    b'data: {"type":"content_block_stop","index":0}\n\n'
    b"event: message_delta\n"
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}\n\n'
    b"event: message_stop\n"
    b'data: {"type":"message_stop"}\n\n'
)

VLLM_WITH_USAGE = (
    b'data: {"id":"chatcmpl-v","object":"chat.completion.chunk","model":"llama",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-v","object":"chat.completion.chunk","model":"llama",'
    b'"choices":[{"index":0,"delta":{"content":"ok"},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-v","object":"chat.completion.chunk","model":"llama","choices":[],'
    b'"usage":{"prompt_tokens":11,"total_tokens":12,"completion_tokens":1}}\n\n'
    b"data: [DONE]\n\n"
)

TRANSFORMERS_SERVE = (  # a doubled blank line, and no end marker
    b'data: {"id":"r1","object":"chat.completion.chunk","model":"tiny@main","choices":[{"index":0,'
    b'"delta":{"role":"assistant"}}]}\n\n\n'
    b'data: {"id":"r1","object":"chat.completion.chunk","model":"tiny@main","choices":[{"index":0,'
    b'"delta":{"content":"x"}}]}\n\n\n'
    b'data: {"id":"r1","object":"chat.completion.chunk","model":"tiny@main",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,'
    b'"completion_tokens":1}}\n\n\n'
)

OPENROUTER = (
    b": OPENROUTER PROCESSING\n\n"
    b": OPENROUTER PROCESSING\n\n"
    b'data: {"id":"gen-1","provider":"Some","object":"chat.completion.chunk",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hm"},"finish_reason":null}]}\n\n'
    b": OPENROUTER PROCESSING\n\n"
    b'data: {"id":"gen-1","provider":"Some","object":"chat.completion.chunk",'
    b'"choices":[{"index":0,"delta":{"content":"."},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)

LLAMA_CPP = (
    b":\n\n"
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],'
    b'"model":"q","object":"chat.completion.chunk"}\n\n'
    b":\n\n"
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\xe2\x80\xa8\xc2\x85"}}],'
    b'"model":"q","object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"model":"q","timings":{"predicted_n":2,'
    b'"predicted_ms":40.1}}\n\n'
    b"data: [DONE]\n\n"
)

NO_SPACE = (
    b'data:{"choices":[{"delta":{"content":"a"}}]}\n\ndata:{"choices":[{"delta":{"content":" b"}}]}\n\ndata:[DONE]\n\n'
)

MULTI_LINE = (
    b'event: chunk\nid: 1\ndata: {\ndata:   "choices": []\ndata: }\n\n'
    b'id: 2\nretry: 1500\ndata: {"choices":\n: a comment inside\ndata: []}\n\n'
    b"id: 3\n\n"
    b"event: ping\n\n"
    b"data\n\n"
    b"data: [DONE]\n\n"
)

MIXED_LINE_ENDS = b"data: a\r\n\r\ndata: b\n\r\n: c\r\rdata: d\r:e\n\ndata: f\r\rid: g\r\ndata: h\n\r"

HALF_EVENT = b'data: {"choices":[{"delta":{"content":"whole"}}]}\n\ndata: {"choices":[{"delta":{"content":"\xf0\x9f'

DONE_WITHOUT_BLANK_LINE = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]'

NOT_UTF8 = b'data: {"choices":[{"delta":{"content":"\xff\xfe\xc3("}}]}\n\ndata: [DONE]\n\n'

TEN_MEGABYTES = (
    b'data: {"choices":[{"delta":{"content":"first"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"' + b"0123456789" * 1_000_000 + b'"}}]}\n\n'
    b"data: [DONE]\n\n"
)

SMALL_STREAMS: dict[str, bytes] = {
    "openai chat": OPENAI_CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "anthropic": ANTHROPIC,
    "vllm with usage": VLLM_WITH_USAGE,
    "transformers serve": TRANSFORMERS_SERVE,
    "openrouter": OPENROUTER,
    "llama.cpp": LLAMA_CPP,
    "no space": NO_SPACE,
    "crlf": OPENAI_CHAT.replace(b"\n", b"\r\n"),
    "crlf with event lines": ANTHROPIC.replace(b"\n", b"\r\n"),
    "cr": OPENAI_CHAT.replace(b"\n", b"\r"),
    "mixed line ends": MIXED_LINE_ENDS,
    "multi-line data": MULTI_LINE,
    "byte order mark": b"\xef\xbb\xbf" + OPENAI_CHAT,
    "half event": HALF_EVENT,
    "done without blank line": DONE_WITHOUT_BLANK_LINE,
    "not utf-8": NOT_UTF8,
}

STREAMS: dict[str, bytes] = {**SMALL_STREAMS, "ten megabytes": TEN_MEGABYTES}
