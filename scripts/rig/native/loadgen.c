// Clients of a streaming gateway on 127.0.0.1: HTTP/1.1 or WebSocket, one thread, epoll. It prints its result as JSON.
//
//   loadgen --port P --connections 200 --requests 200 --seconds 8 --events 300     each sends a request at a time
//           --ramp-ms 500       the connections begin spread over this time
//           --events 0          whole answers instead of streams
//           --prompt-bytes N    the size of the prompt
//           --header 'A: b'     more headers, each with its option
//           --websocket PATH    the body goes as one message; the stream ends with the message [DONE]
//           --mux 8             llm-mux.v1 on that path, so many of the clients on a socket, asking as /client.js does
//           --idle 1            connect, upgrade, and then say nothing
//
// It ends when the requests are answered or the time is over; what still runs then is "cut", neither right nor wrong.
// A stream is right when its status is 200, its framing is whole, its marks (mark.h) are all there and in order, and it
// ends with [DONE] and nothing after. An event's time on the way is now less its mark.
#define _GNU_SOURCE
#include "answer.h"
#include "bytes.h"
#include "frame.h"
#include "mark.h"
#include "mux.h"
#include "sample.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 256 * 1024, TURN_EVENTS = 1024, KINDS = 8, KIND_BYTES = 80, AFTER_FAILURE_MS = 20 };
enum { MUX_WINDOW = 512, MUX_MESSAGE_BYTES = 256 };

// One request at a time, and what has come of it.
typedef struct {
    int asked; // a request is under way
    uint64_t asked_at, next_place;
    uint64_t seq, acknowledged; // mux: of its frames
    int ended, out_of_order;
} stream;

// One socket, with one stream; or with several, in mux.
typedef struct {
    int fd;
    int connecting, reused;
    uint64_t opens_at;
    answer answer;
    bytes out;
    bytes partial; // a line or frame that a read cut
    stream *streams;
    int count, live; // of them all, and of those that are asked
} client;

static struct {
    int port, connections, idle, mux;
    long requests;
    uint64_t events;
    double seconds, ramp_ms;
    size_t prompt_bytes;
    const char *websocket;
} options = {.connections = 1, .requests = 1L << 60, .seconds = 10};

static bytes headers, body, first_bytes; // what a connection says first: the request, or the handshake
static bytes message;                    // the body as one masked text frame; in mux the init
static bytes *starts;                    // in mux: the body as each stream of a socket sends it, masked
static int poller, sockets;
static uint64_t ends_at;
static client *clients;
static long asked, right, wrong, marks, reads, opened, upgraded;
static sample on_the_way, to_first_mark, to_the_end;
static struct {
    char text[KIND_BYTES];
    long count;
} kinds[KINDS];

// ---- right and wrong ----

static void note_wrong(const char *kind) {
    wrong++;
    int i = 0;
    while (i < KINDS - 1 && kinds[i].count && strcmp(kinds[i].text, kind))
        i++;
    snprintf(kinds[i].text, KIND_BYTES, "%s", i < KINDS - 1 ? kind : "others");
    kinds[i].count++;
}

static void hang_up(client *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->connecting = 0;
    bytes_clear(&c->out);
    bytes_clear(&c->partial);
}

// The request is over.
static void settle(client *c, stream *s) {
    c->live -= s->asked;
    s->asked = 0;
}

static void fail(client *c, const char *kind) {
    for (stream *s = c->streams; s < c->streams + c->count; s++) {
        if (s->asked)
            note_wrong(kind);
        settle(c, s);
    }
    hang_up(c);
    c->opens_at = now_ns() + AFTER_FAILURE_MS * 1000000ull; // a dead server is not asked in a tight loop
}

static void judge(const client *c, const stream *s) {
    char text[KIND_BYTES];
    if (c->answer.status != 200 && c->answer.status != 101)
        snprintf(text, sizeof text, "status %d", c->answer.status);
    else if (s->out_of_order)
        snprintf(text, sizeof text, "events out of order");
    else if (s->next_place != (options.events ? options.events : 1))
        snprintf(text, sizeof text, "events missing");
    else if (options.events && !s->ended)
        snprintf(text, sizeof text, "no [DONE]");
    else {
        right++;
        sample_add(&to_the_end, now_ns() - s->asked_at);
        return;
    }
    note_wrong(text);
}

// ---- asking ----

static int may_ask(void) { return asked < options.requests && now_ns() < ends_at; }

static void watch(client *c) {
    struct epoll_event e = {.events = EPOLLIN | (c->out.size ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void flush(client *c) {
    while (c->out.size) {
        ssize_t taken = send(c->fd, bytes_at(&c->out), c->out.size, MSG_NOSIGNAL);
        if (taken < 0 && errno == EAGAIN)
            break;
        if (taken < 0) {
            fail(c, "the server closed while a request was sent");
            return;
        }
        bytes_drop(&c->out, (size_t)taken);
    }
    watch(c);
}

static void say(client *c, const bytes *what) {
    bytes_add(&c->out, what->memory + what->start, what->size);
    flush(c);
}

static void begin(client *c, stream *s) {
    *s = (stream){.asked = 1, .asked_at = now_ns()};
    c->live++;
    asked++;
}

static void dial(client *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        fail(c, "no more sockets");
        return;
    }
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->connecting = 1;
    c->reused = 0;
    opened++;
    answer_begin(&c->answer);
    if (connect(c->fd, (void *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        fail(c, strerror(errno));
}

static void go_on(client *c, stream *s) {
    settle(c, s);
    c->reused = 1;
    if (!options.websocket && !c->answer.keeps_alive)
        hang_up(c);
    if (!may_ask()) {
        if (!c->live)
            hang_up(c);
        return;
    }
    begin(c, s);
    if (c->fd < 0)
        dial(c);
    else if (options.mux)
        say(c, &starts[s - c->streams]);
    else if (options.websocket)
        say(c, &message);
    else {
        answer_begin(&c->answer);
        say(c, &first_bytes);
    }
}

// ---- what comes ----

static void read_marks(stream *s, const char *at, size_t size, uint64_t now) {
    const char *end = at + size;
    uint64_t sent_ns, place;
    while (end - at >= MARK_BYTES && (at = memchr(at, '@', (size_t)(end - at))) && end - at >= MARK_BYTES) {
        if (!read_mark(at, &sent_ns, &place)) {
            at++;
            continue;
        }
        if (!s->next_place)
            sample_add(&to_first_mark, now - s->asked_at);
        s->out_of_order |= place != s->next_place || s->ended;
        s->next_place = place + 1;
        marks++;
        sample_add(&on_the_way, now > sent_ns ? now - sent_ns : 0);
        at += MARK_BYTES;
    }
}

static void read_line(client *c, const char *line, size_t size, uint64_t now) {
    if (options.events && size < 32 && size >= 11 && !memcmp(line, "data:", 5) && memmem(line, size, "[DONE]", 6))
        c->streams->ended = 1;
    else
        read_marks(c->streams, line, size, now);
}

static void read_body(client *c, const char *at, size_t size, uint64_t now) {
    for (const char *end = at + size, *line_end; at < end; at = line_end + 1) {
        if (!(line_end = memchr(at, '\n', (size_t)(end - at)))) {
            bytes_add(&c->partial, at, (size_t)(end - at));
            return;
        }
        if (!c->partial.size) {
            read_line(c, at, (size_t)(line_end - at), now);
            continue;
        }
        bytes_add(&c->partial, at, (size_t)(line_end - at));
        read_line(c, bytes_at(&c->partial), c->partial.size, now);
        bytes_clear(&c->partial);
    }
}

static void end_answer(client *c, uint64_t now) {
    if (c->partial.size)
        read_line(c, bytes_at(&c->partial), c->partial.size, now);
    bytes_clear(&c->partial);
    judge(c, c->streams);
    go_on(c, c->streams);
}

// ---- mux ----

static void say_message(client *c, const char *text) {
    bytes frame = {0};
    add_frame(&frame, TEXT, text, strlen(text));
    say(c, &frame);
    bytes_free(&frame);
}

// Acknowledge each half of a window.
static void acknowledge(client *c, stream *s) {
    char text[MUX_MESSAGE_BYTES];
    if (s->seq - s->acknowledged < MUX_WINDOW / 2)
        return;
    s->acknowledged = s->seq;
    snprintf(text, sizeof text, "{\"type\":\"ack\",\"rid\":\"r%d\",\"seq\":%llu}", (int)(s - c->streams),
             (unsigned long long)s->seq);
    say_message(c, text);
}

// What is about one stream, or tells that it is over.
static void read_stream_message(client *c, stream *s, const char *line, const envelope *e, uint64_t now) {
    if (is_of(e, "accepted") || is_of(e, "queued"))
        return;
    s->out_of_order |= e->seq != s->seq + 1;
    s->seq = e->seq;
    if (is_of(e, "chat_completion_chunk")) {
        read_marks(s, line, (size_t)(e->type - line), now);
        acknowledge(c, s);
        return;
    }
    s->ended = is_of(e, "done");
    if (s->ended)
        judge(c, s);
    else
        note_wrong(is_of(e, "error") ? "an error frame" : "an unexpected frame");
    go_on(c, s);
}

static void read_message(client *c, const char *line, size_t size, uint64_t now) {
    envelope e = read_envelope(line, size);
    if (e.rid < (uint64_t)c->count && c->streams[e.rid].asked)
        read_stream_message(c, c->streams + e.rid, line, &e, now);
    else if (is_of(&e, "ready"))
        for (int i = 0; i < c->count && c->fd >= 0; i++) {
            if (c->streams[i].asked)
                say(c, &starts[i]);
        }
    else if (is_of(&e, "ping"))
        say_message(c, "{\"type\":\"pong\"}");
    else if (is_of(&e, "error"))
        fail(c, "an error frame");
}

// The messages of one frame, a line each.
static void read_messages(client *c, const char *at, size_t size, uint64_t now) {
    const char *end = at + size, *line_end;
    for (; at < end && c->fd >= 0; at = line_end + 1) {
        line_end = memchr(at, '\n', (size_t)(end - at));
        if (!line_end)
            line_end = end;
        read_message(c, at, (size_t)(line_end - at), now);
    }
}

// ---- WebSocket frames ----

// One frame of the server's; 0 when the client has hung up.
static int read_frame(client *c, int kind, const char *payload, size_t size, uint64_t now) {
    if (kind == CLOSE) {
        fail(c, "the server closed the WebSocket");
        return 0;
    }
    if (kind == PING && size < 126) {
        bytes pong = {0};
        unsigned char head[6] = {0x80 | PONG, (unsigned char)(0x80 | size)}; // its mask is zero
        bytes_add(&pong, head, sizeof head);
        bytes_add(&pong, payload, size);
        say(c, &pong);
        bytes_free(&pong);
    } else if (kind == TEXT && options.mux) {
        read_messages(c, payload, size, now);
    } else if (kind == TEXT && c->live && size == 6 && !memcmp(payload, "[DONE]", 6)) {
        c->streams->ended = 1;
        judge(c, c->streams);
        go_on(c, c->streams);
    } else if (kind == TEXT) {
        if (c->live && size > 8 && !memcmp(payload, "{\"error\"", 8)) {
            fail(c, "an error frame");
            return 0;
        }
        read_marks(c->streams, payload, size, now);
    }
    return c->fd >= 0;
}

// The whole frames of `data`; returns how many bytes they are, or -1 when the client has hung up.
static ssize_t read_whole_frames(client *c, const char *data, size_t size, uint64_t now) {
    size_t at = 0;
    while (size - at >= 2) {
        const unsigned char *frame = (const unsigned char *)data + at;
        size_t head = 2, length = frame[1] & 127, wide = length == 126 ? 2 : length == 127 ? 8 : 0;
        if (size - at < head + wide)
            break;
        if (wide)
            for (length = 0; head < 2 + wide; head++)
                length = length << 8 | frame[head];
        if (size - at - head < length)
            break;
        if (!read_frame(c, frame[0] & 15, data + at + head, length, now))
            return -1;
        at += head + length;
    }
    return (ssize_t)at;
}

static void read_frames(client *c, const char *data, size_t size, uint64_t now) {
    if (!c->partial.size) {
        ssize_t used = read_whole_frames(c, data, size, now);
        if (used >= 0)
            bytes_add(&c->partial, data + used, size - (size_t)used);
        return;
    }
    bytes_add(&c->partial, data, size);
    ssize_t used = read_whole_frames(c, bytes_at(&c->partial), c->partial.size, now);
    if (used >= 0)
        bytes_drop(&c->partial, (size_t)used);
}

static void upgrade(client *c) {
    upgraded++;
    if (options.idle)
        settle(c, c->streams);
    if (options.mux || !options.idle)
        say(c, &message);
}

static void take(client *c, const char *data, size_t size) {
    uint64_t now = now_ns();
    int fd = c->fd;
    if (c->answer.state == UPGRADED) {
        read_frames(c, data, size, now);
        return;
    }
    while (size && c->fd == fd && c->fd >= 0) {
        const char *piece;
        size_t piece_size, used = answer_read(&c->answer, data, size, &piece, &piece_size);
        data += used;
        size -= used;
        if (piece_size)
            read_body(c, piece, piece_size, now);
        if (c->answer.state == UPGRADED) {
            upgrade(c);
            if (size && c->fd >= 0)
                read_frames(c, data, size, now);
            return;
        }
        if (c->answer.state == NOT_HTTP)
            fail(c, "not an HTTP answer");
        else if (c->answer.state == WHOLE) {
            if (size)
                fail(c, "bytes after the answer");
            else
                end_answer(c, now);
            return;
        }
    }
}

static void lose(client *c, const char *why) {
    if (c->answer.state == IN_REST)
        end_answer(c, now_ns());
    else if (c->reused && c->live && c->answer.state == IN_HEAD && !c->answer.head.size && !options.websocket) {
        hang_up(c); // a kept connection that the server gave up meanwhile: ask again on a new one
        dial(c);
    } else
        fail(c, why);
}

static void hear(client *c, uint32_t what) {
    static char buffer[READ_BYTES];
    if (c->fd < 0)
        return;
    if (c->connecting) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            fail(c, strerror(error));
        else if (what & EPOLLOUT) {
            c->connecting = 0;
            say(c, &first_bytes);
        }
        return;
    }
    if (what & EPOLLOUT)
        flush(c);
    if (c->fd < 0 || !(what & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    ssize_t size = recv(c->fd, buffer, sizeof buffer, 0);
    if (size > 0) {
        reads++;
        take(c, buffer, (size_t)size);
    } else if (!size)
        lose(c, "the server closed before the end");
    else if (errno != EAGAIN)
        lose(c, strerror(errno));
}

// ---- the whole run ----

static void prepare_body(void) {
    static const char before[] = "{\"model\":\"sim-model\",\"messages\":[{\"role\":\"user\",\"content\":\"";
    static const char prompt[] = "Write a short story about a lighthouse. ";
    bytes_add(&body, before, sizeof before - 1);
    for (size_t size = 0; !size || size < options.prompt_bytes; size += sizeof prompt - 1)
        bytes_add(&body, prompt, sizeof prompt - 1);
    bytes_add(&body, "\"}]", 3);
    if (options.events)
        bytes_add(&body, ",\"stream\":true", 14);
    bytes_add(&body, "}", 1);
}

static void prepare_message(void) {
    if (!options.mux) {
        add_frame(&message, TEXT, bytes_at(&body), body.size);
        return;
    }
    static const char init[] = "{\"type\":\"init\",\"v\":1,\"features\":[\"ack\",\"ndjson\"],\"resume\":[]}";
    add_frame(&message, TEXT, init, sizeof init - 1);
    starts = calloc((size_t)options.mux, sizeof *starts);
    for (int i = 0; i < options.mux; i++) {
        char head[MUX_MESSAGE_BYTES];
        int size = snprintf(head, sizeof head,
                            "{\"type\":\"start\",\"rid\":\"r%d\",\"path\":\"/v1/chat/completions\","
                            "\"resumable\":true,\"window\":%d,\"body\":",
                            i, MUX_WINDOW);
        bytes text = {0};
        bytes_add(&text, head, (size_t)size);
        bytes_add(&text, bytes_at(&body), body.size);
        bytes_add(&text, "}", 1);
        add_frame(&starts[i], TEXT, bytes_at(&text), text.size);
        bytes_free(&text);
    }
}

static void prepare_first_bytes(void) {
    char text[4096];
    if (options.websocket)
        snprintf(text, sizeof text,
                 "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s%s\r\n",
                 options.websocket, options.port, handshake_key,
                 options.mux ? "Sec-WebSocket-Protocol: llm-mux.v1\r\n" : "", headers.size ? bytes_at(&headers) : "");
    else
        snprintf(text, sizeof text,
                 "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                 "Accept: */*\r\nContent-Length: %zu\r\n%s\r\n",
                 options.port, body.size, headers.size ? bytes_at(&headers) : "");
    bytes_add(&first_bytes, text, strlen(text));
    if (!options.websocket)
        bytes_add(&first_bytes, bytes_at(&body), body.size);
}

static int open_what_is_due(uint64_t now) {
    int live = 0;
    for (int i = 0; i < sockets; i++) {
        client *c = clients + i;
        if (c->fd < 0 && c->opens_at <= now && may_ask()) {
            for (stream *s = c->streams; s < c->streams + c->count && may_ask(); s++)
                begin(c, s);
            dial(c);
        }
        live |= c->fd >= 0 || may_ask();
    }
    return live;
}

static void run(void) {
    struct epoll_event heard[TURN_EVENTS];
    uint64_t looked_at = 0;
    for (int live = 1; live;) {
        uint64_t now = now_ns();
        if (now >= ends_at)
            return;
        if (now - looked_at > 1000000) {
            looked_at = now;
            live = open_what_is_due(now);
        }
        int count = epoll_wait(poller, heard, TURN_EVENTS, 1);
        for (int i = 0; i < count; i++)
            hear(heard[i].data.ptr, heard[i].events);
    }
}

static void print_result(double seconds) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                   (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    long cut = 0, open = 0;
    for (int i = 0; i < sockets; i++) {
        cut += clients[i].live;
        open += clients[i].fd >= 0;
    }
    printf("{\"seconds\":%.3f,\"asked\":%ld,\"right\":%ld,\"wrong\":%ld,\"cut\":%ld,\"connections\":%ld,\"open\":%ld,"
           "\"upgraded\":%ld,\"events\":%ld,\"reads\":%ld,\"cpu_s\":%.3f,",
           seconds, asked, right, wrong, cut, opened, open, upgraded, marks, reads, cpu_s);
    sample_print("event_us", &on_the_way);
    printf(",");
    sample_print("first_us", &to_first_mark);
    printf(",");
    sample_print("answer_us", &to_the_end);
    printf(",\"kinds\":{");
    for (int i = 0; i < KINDS && kinds[i].count; i++)
        printf("%s\"%s\":%ld", i ? "," : "", kinds[i].text, kinds[i].count);
    printf("}}\n");
}

static void read_option(const char *name, const char *value) {
    if (!strcmp(name, "--port"))
        options.port = atoi(value);
    else if (!strcmp(name, "--connections"))
        options.connections = atoi(value);
    else if (!strcmp(name, "--requests"))
        options.requests = atol(value);
    else if (!strcmp(name, "--seconds"))
        options.seconds = atof(value);
    else if (!strcmp(name, "--events"))
        options.events = strtoull(value, NULL, 10);
    else if (!strcmp(name, "--ramp-ms"))
        options.ramp_ms = atof(value);
    else if (!strcmp(name, "--prompt-bytes"))
        options.prompt_bytes = strtoull(value, NULL, 10);
    else if (!strcmp(name, "--websocket"))
        options.websocket = value;
    else if (!strcmp(name, "--mux"))
        options.mux = atoi(value);
    else if (!strcmp(name, "--idle"))
        options.idle = atoi(value);
    else if (!strcmp(name, "--header")) {
        bytes_add(&headers, value, strlen(value));
        bytes_add(&headers, "\r\n", 2);
    } else {
        fprintf(stderr, "loadgen: unknown option %s\n", name);
        exit(2);
    }
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2)
        read_option(argv[i], argv[i + 1]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    prepare_body();
    prepare_message();
    prepare_first_bytes();
    poller = epoll_create1(0);
    int on_each = options.mux && !options.idle ? options.mux : 1;
    sockets = (options.connections + on_each - 1) / on_each;
    clients = calloc((size_t)sockets, sizeof *clients);
    stream *streams = calloc((size_t)options.connections, sizeof *streams);
    uint64_t began_at = now_ns();
    ends_at = began_at + (uint64_t)(options.seconds * 1e9);
    for (int i = 0; i < sockets; i++) {
        int left = options.connections - i * on_each;
        clients[i].fd = -1;
        clients[i].opens_at = began_at + (uint64_t)(options.ramp_ms * 1e6 * i / sockets);
        clients[i].streams = streams + i * on_each;
        clients[i].count = left < on_each ? left : on_each;
    }
    run();
    print_result((double)(now_ns() - began_at) / 1e9);
    return 0;
}
