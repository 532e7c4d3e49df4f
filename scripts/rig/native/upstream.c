// A simulated model server: HTTP/1.1 on 127.0.0.1, one thread, epoll. It prints the port it took.
//
//   POST .../chat/completions   with "stream": true, events at a steady interval or as fast as the reader takes them, each
//                               in a chunk and a write of its own; else one JSON answer
//   GET /run?events=N&interval_us=U&first_us=F&event_bytes=B
//                               settings for what is asked from now on (each stays as it was when left out; interval 0: as
//                               fast as possible; event_bytes: pad the text of each event); answers with what it counted
//   GET of what routers look at before they send anything: health, models, server_info
//
// Every event's text begins with a mark (mark.h). Requests on one connection are answered one after the other.
#define _GNU_SOURCE
#include "bytes.h"
#include "due.h"
#include "mark.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { BACKLOG = 4096, READ_BYTES = 64 * 1024, TURN_EVENTS = 1024, MOST_SENT_A_TURN = 4096 };

typedef struct connection {
    dated timing; // first: a member of the queue is cast back to its connection
    int fd;
    bytes in, out;
    int waits_for_room; // told epoll that it wants to write
    int closes;         // after the answer under way
    int streams;        // an answer of events is under way
    uint64_t sent, total, interval_ns;
    struct connection *next_dead;
} connection;

typedef struct {
    const char *method, *target, *body;
    size_t body_size, size; // of the body; of the whole request
} request;

static uint64_t events = 100, interval_ns, first_ns, event_bytes;
static uint64_t counted_requests, counted_events, counted_aborted;
static bytes event_template; // one chunk with one event; its mark is filled in for each event
static size_t mark_offset;
static due_queue queue;
static connection *dead; // closed in this turn: epoll may still name them
static int poller;
static volatile sig_atomic_t stopped;

// ---- what it says ----

static const char chunk_begins[] = "data: {\"id\":\"chatcmpl-6b1f0c2e9d7a4853\",\"object\":\"chat.completion.chunk\","
                                   "\"created\":1767225600,\"model\":\"sim-model\",\"system_fingerprint\":\"fp_rig\","
                                   "\"choices\":[{\"index\":0,\"delta\":";

static void prepare_event(void) {
    bytes text = {0};
    bytes_add(&text, chunk_begins, sizeof chunk_begins - 1);
    bytes_add(&text, "{\"content\":\"", 12);
    size_t mark_in_text = text.size;
    bytes_reserve(&text, MARK_BYTES + event_bytes);
    memset(bytes_at(&text) + text.size, 'x', MARK_BYTES + event_bytes);
    bytes_grown(&text, MARK_BYTES + event_bytes);
    static const char ends[] = "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    bytes_add(&text, ends, sizeof ends - 1);

    char size_line[32];
    int size_line_bytes = snprintf(size_line, sizeof size_line, "%zx\r\n", text.size);
    bytes_clear(&event_template);
    bytes_add(&event_template, size_line, (size_t)size_line_bytes);
    bytes_add(&event_template, bytes_at(&text), text.size);
    bytes_add(&event_template, "\r\n", 2);
    mark_offset = (size_t)size_line_bytes + mark_in_text;
    bytes_free(&text);
}

static size_t last_words(char *to, size_t room) {
    char text[512];
    int size = snprintf(text, sizeof text, "%s{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n", chunk_begins);
    return (size_t)snprintf(to, room, "%x\r\n%s\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", size, text);
}

// ---- sending ----

static void want_room(connection *c, int wanted) {
    if (c->waits_for_room == wanted)
        return;
    c->waits_for_room = wanted;
    struct epoll_event e = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void drop(connection *c) {
    if (c->fd < 0)
        return;
    counted_aborted += (uint64_t)c->streams;
    due_remove(&queue, &c->timing);
    close(c->fd);
    c->fd = -1;
    c->next_dead = dead;
    dead = c;
}

// One write; what the socket does not take waits for it to have room.
static void put(connection *c, const char *data, size_t size) {
    if (c->fd < 0)
        return;
    ssize_t taken = c->out.size ? 0 : send(c->fd, data, size, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        drop(c);
        return;
    }
    if (taken < 0)
        taken = 0;
    if ((size_t)taken < size) {
        bytes_add(&c->out, data + taken, size - (size_t)taken);
        want_room(c, 1);
    }
}

static void answer_json(connection *c, const char *status, const char *body) {
    char text[2048];
    int size = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n%s",
                        status, strlen(body), c->closes ? "Connection: close\r\n" : "", body);
    put(c, text, (size_t)size);
}

static void begin_stream(connection *c) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                               "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    put(c, head, sizeof head - 1);
    if (c->fd < 0)
        return;
    c->streams = 1;
    c->sent = 0;
    c->total = events;
    c->interval_ns = interval_ns;
    // A phase of its own, so that streams that begin together do not tick together.
    c->timing.due_ns = now_ns() + first_ns + (interval_ns ? (uint64_t)random() % interval_ns : 0);
    due_add(&queue, &c->timing);
}

static void read_requests(connection *c);

static void end_stream(connection *c) {
    char text[1024];
    put(c, text, last_words(text, sizeof text));
    c->streams = 0;
    due_remove(&queue, &c->timing);
    if (c->closes && !c->out.size)
        drop(c);
    else
        read_requests(c);
}

static void send_event(connection *c, uint64_t now) {
    if (c->sent == c->total) {
        end_stream(c);
        return;
    }
    write_mark(bytes_at(&event_template) + mark_offset, now, c->sent++);
    put(c, bytes_at(&event_template), event_template.size);
    counted_events++;
    if (c->fd < 0)
        return;
    if (c->out.size) { // the reader is behind: go on when it has caught up
        due_remove(&queue, &c->timing);
        return;
    }
    c->timing.due_ns = c->interval_ns ? c->timing.due_ns + c->interval_ns : now;
    due_settle(&queue, c->timing.place);
}

static void flush(connection *c) {
    ssize_t taken = send(c->fd, bytes_at(&c->out), c->out.size, MSG_NOSIGNAL);
    if (taken < 0) {
        if (errno != EAGAIN)
            drop(c);
        return;
    }
    bytes_drop(&c->out, (size_t)taken);
    if (c->out.size)
        return;
    want_room(c, 0);
    if (c->streams && c->timing.place < 0) {
        c->timing.due_ns = now_ns();
        due_add(&queue, &c->timing);
    } else if (c->closes && !c->streams)
        drop(c);
}

// ---- what it is asked ----

static uint64_t setting(const char *target, const char *name, uint64_t otherwise) {
    const char *found = strstr(target, name);
    return found ? strtoull(found + strlen(name), NULL, 10) : otherwise;
}

static void answer_run(connection *c, const char *target) {
    events = setting(target, "events=", events);
    interval_ns = setting(target, "interval_us=", interval_ns / 1000) * 1000;
    first_ns = setting(target, "first_us=", first_ns / 1000) * 1000;
    event_bytes = setting(target, "event_bytes=", event_bytes);
    prepare_event();
    char text[160];
    snprintf(text, sizeof text, "{\"requests\":%llu,\"events\":%llu,\"aborted\":%llu}", (unsigned long long)counted_requests,
             (unsigned long long)counted_events, (unsigned long long)counted_aborted);
    answer_json(c, "200 OK", text);
}

static int asks_for_stream(const request *r) {
    const char *end = r->body + r->body_size, *at = r->body;
    while ((at = memmem(at, (size_t)(end - at), "\"stream\"", 8))) {
        at += 8;
        at += strspn(at, " \t\r\n");
        if (*at == ':') {
            at += 1 + strspn(at + 1, " \t\r\n");
            if (!strncmp(at, "true", 4))
                return 1;
        }
    }
    return 0;
}

static void answer_whole(connection *c) {
    char mark[MARK_BYTES + 1] = "", text[1024];
    write_mark(mark, now_ns(), 0);
    snprintf(text, sizeof text,
             "{\"id\":\"chatcmpl-6b1f0c2e9d7a4853\",\"object\":\"chat.completion\",\"created\":1767225600,"
             "\"model\":\"sim-model\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
             "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,\"total_tokens\":10}}",
             mark);
    answer_json(c, "200 OK", text);
}

static void answer_get(connection *c, const char *target) {
    static const char model[] = "{\"model_path\":\"sim-model\",\"tokenizer_path\":\"sim-model\",\"is_generation\":true}";
    static const char server[] = "{\"model_path\":\"sim-model\",\"served_model_name\":\"sim-model\",\"tp_size\":1,"
                                 "\"dp_size\":1,\"version\":\"0.5.0\"}";
    static const struct {
        const char *path, *body;
    } known[] = {
        {"/v1/models", "{\"object\":\"list\",\"data\":[{\"id\":\"sim-model\",\"object\":\"model\",\"created\":1767225600,"
                       "\"owned_by\":\"rig\",\"max_model_len\":32768}]}"},
        {"/health", "{\"status\":\"ok\"}"},
        {"/get_model_info", model},
        {"/model_info", model},
        {"/get_server_info", server},
        {"/server_info", server},
        {"/version", "{\"version\":\"0.10.0\"}"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(target, known[i].path, strlen(known[i].path))) {
            answer_json(c, "200 OK", known[i].body);
            return;
        }
    answer_json(c, "404 Not Found", "{\"error\":{\"message\":\"not found\"}}");
}

static void answer(connection *c, const request *r) {
    counted_requests++;
    if (!strcmp(r->method, "POST") && strstr(r->target, "/chat/completions")) {
        if (asks_for_stream(r))
            begin_stream(c);
        else
            answer_whole(c);
    } else if (!strncmp(r->target, "/run", 4))
        answer_run(c, r->target);
    else
        answer_get(c, r->target);
    if (c->fd >= 0 && c->closes && !c->streams && !c->out.size)
        drop(c);
}

// The bytes of a whole chunked body that begins at `at`, or 0 while it is not whole.
static size_t chunked_size(const char *at, size_t size) {
    const char *p = at, *end = at + size;
    while (p < end) {
        const char *line_end = memchr(p, '\n', (size_t)(end - p));
        if (!line_end)
            return 0;
        size_t chunk = strtoul(p, NULL, 16);
        if ((size_t)(end - line_end - 1) < chunk + 2)
            return 0;
        p = line_end + 1 + chunk + 2;
        if (!chunk)
            return (size_t)(p - at);
    }
    return 0;
}

// Whether a whole request has come. Its strings point into `c->in`.
static int take_request(connection *c, request *r) {
    if (!c->in.size)
        return 0;
    char *head = bytes_at(&c->in), *head_end = strstr(head, "\r\n\r\n");
    if (!head_end)
        return 0;
    size_t head_size = (size_t)(head_end + 4 - head);
    r->body = head + head_size;
    head_end[2] = 0; // so that headers are searched in the head alone
    const char *length = strcasestr(head, "\r\ncontent-length:"), *closes = strcasestr(head, "\r\nconnection: close");
    int chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
    r->body_size = chunked ? chunked_size(r->body, c->in.size - head_size) : length ? strtoul(length + 17, NULL, 10) : 0;
    r->size = head_size + r->body_size;
    if (r->size > c->in.size || (chunked && !r->body_size)) {
        head_end[2] = '\r';
        return 0;
    }
    c->closes |= closes != NULL;
    char *space = strchr(head, ' '), *second = space ? strchr(space + 1, ' ') : NULL;
    if (!second) {
        drop(c);
        return 0;
    }
    *space = *second = 0;
    r->method = head;
    r->target = space + 1;
    return 1;
}

static void read_requests(connection *c) {
    request r;
    while (c->fd >= 0 && !c->streams && !c->closes && take_request(c, &r)) {
        answer(c, &r);
        bytes_drop(&c->in, r.size);
    }
}

// ---- its turn ----

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connection *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        c->fd = fd;
        c->timing.place = -1;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void hear(connection *c, uint32_t what) {
    if (c->fd >= 0 && what & EPOLLOUT && c->out.size)
        flush(c);
    if (c->fd < 0 || !(what & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    bytes_reserve(&c->in, READ_BYTES);
    ssize_t size = recv(c->fd, bytes_at(&c->in) + c->in.size, READ_BYTES, 0);
    if (size == 0 || (size < 0 && errno != EAGAIN))
        drop(c);
    else if (size > 0) {
        bytes_grown(&c->in, (size_t)size);
        read_requests(c);
    }
}

static void send_what_is_due(void) {
    uint64_t turn_began = now_ns();
    for (int left = MOST_SENT_A_TURN; left && queue.count && queue.members[0]->due_ns <= turn_began; left--)
        send_event((connection *)queue.members[0], now_ns());
}

static void bury(void) {
    while (dead) {
        connection *c = dead;
        dead = c->next_dead;
        bytes_free(&c->in);
        bytes_free(&c->out);
        free(c);
    }
}

static void set_timer(int timer) {
    static uint64_t set_to;
    if (!queue.count || queue.members[0]->due_ns == set_to)
        return;
    set_to = queue.members[0]->due_ns;
    struct itimerspec at = {.it_value = {(time_t)(set_to / 1000000000ull), (long)(set_to % 1000000000ull)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static int listen_on_a_free_port(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (void *)&address, size) || listen(listener, BACKLOG) ||
        getsockname(listener, (void *)&address, &size)) {
        perror("upstream: cannot listen");
        exit(1);
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(void) {
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare_event();
    int listener = listen_on_a_free_port(), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener}, heard[TURN_EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    while (!stopped) {
        set_timer(timer);
        int overdue = queue.count && queue.members[0]->due_ns <= now_ns();
        int count = epoll_wait(poller, heard, TURN_EVENTS, overdue ? 0 : 1000);
        for (int i = 0; i < count; i++) {
            uint64_t expirations;
            if (heard[i].data.ptr == &listener)
                accept_all(listener);
            else if (heard[i].data.ptr == &timer) {
                if (read(timer, &expirations, sizeof expirations) < 0)
                    continue;
            } else
                hear(heard[i].data.ptr, heard[i].events);
        }
        send_what_is_due();
        bury();
    }
    return 0;
}
