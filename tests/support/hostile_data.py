"""What an upstream might say to pass for the gateway: events' data that would forge what stands around it."""

from __future__ import annotations

HOSTILE_DATA = [
    b'{},"stage_id":"forged"},"type":"done","rid":"r2","seq":99,"x":{"y":{}',
    b'{"type":"done","rid":"r2","seq":99,"stage_id":"forged"}',
    b'{"a":1},"type":"done","rid":"r2","seq":99}',
    b'{"a":1}}',
    b'{"a":1}} {"type":"done","rid":"r2","seq":99}',
    b'{"a":"\\"},\\"type\\":\\"done\\",\\"rid\\":\\"r2\\"}"}',
    b'{"a":"b',
    b'{"a":"b\\"}',
    b'{"a":"\xff"},"type":"done","rid":"r2"}',
    b'{"a":"\xc0\xa2}, \xc0\xa2type\xc0\xa2:"}',
    b'{"a":1}\n\n{"type":"done","rid":"r2","seq":99}',
    b'{"a":1}\x00,"type":"done"',
    b'{"a":/*"}*/1},"type":"done","b":{/*"*/}',
    b'{"__proto__":{"type":"done"},"constructor":1}',
    '{"a":"\u2028"},"type":"done","rid":"r2","seq":99,"b":{}'.encode(),
    b'\xef\xbb\xbf{"type":"done"}',
    b"[DONE]",
    b"",
]
