/* A streaming completion server of known times, for measuring clients: one thread, epoll, one timerfd, a heap of due
 * chunks.  It shares no code with the harness and logs its own times.
 *
 *   cc -O2 -o truth_server truth_server.c
 *   ./truth_server PORT TTFT_US ITL_US TOKENS LOG [MODEL]      PORT 0: any; prints the port; ends on SIGTERM
 *
 * Every POST is answered by TOKENS chunks (or the request's max_tokens, when smaller), one token each, at
 * received + TTFT + k * ITL.  At the end LOG gets one record a finished answer, int64 in host order: tokens, then
 * nanoseconds of CLOCK_MONOTONIC when the request was complete and when each chunk was handed to the kernel.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int fd, chat, stream, busy, tokens, sent;
    int64_t received, *times;
    char *buffer;
    size_t length, size;
} Conn;

typedef struct { int64_t due; Conn *conn; int64_t received; } Due;

static int64_t ttft, itl;
static int default_tokens;
static const char *model = "truth";
static Due *heap;
static size_t heaped, heap_size;
static int timer_fd, epoll_fd;
static FILE *log_file;
static volatile sig_atomic_t over;
static char head[256], token_text[2][768], last_text[2][1024];
static size_t head_n, token_n[2];

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void push(Due d) {
    if (heaped == heap_size) heap = realloc(heap, (heap_size = heap_size ? heap_size * 2 : 1024) * sizeof *heap);
    size_t i = heaped++;
    for (; i && heap[(i - 1) / 2].due > d.due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = d;
}

static Due pop(void) {
    Due top = heap[0], last = heap[--heaped];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < heaped; i = child) {
        if (child + 1 < heaped && heap[child + 1].due < heap[child].due) child++;
        if (heap[child].due >= last.due) break;
        heap[i] = heap[child];
    }
    if (heaped) heap[i] = last;
    return top;
}

static void arm(void) {
    static int64_t armed;
    int64_t due = heaped ? heap[0].due : 0;
    if (due == armed && due) return;
    armed = due;
    struct itimerspec spec = {{0, 0}, {due / 1000000000LL, due % 1000000000LL}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void drop(Conn *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    c->busy = 0;
}

static void put(Conn *c, const char *data, size_t n) {
    while (n && c->fd >= 0) {
        ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) { usleep(50); continue; }
        if (sent < 0) { drop(c); return; }
        data += sent, n -= sent;
    }
}

static size_t frame(char *out, const char *text) { return sprintf(out, "%zx\r\n%.*s\r\n", strlen(text), (int)strlen(text), text); }

static void prepare(void) {
    head_n = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    char text[512];
    for (int chat = 0; chat < 2; chat++) {
        sprintf(text,
            "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"%s\",\"choices\":"
            "[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":null}]}\n\n",
            chat ? "chat.completion.chunk" : "text_completion", model,
            chat ? "\"delta\":{\"content\":\" word\"}" : "\"text\":\" word\"");
        token_n[chat] = frame(token_text[chat], text);
        sprintf(last_text[chat],
            "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"%s\",\"choices\":"
            "[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n",
            chat ? "chat.completion.chunk" : "text_completion", model, chat ? "\"delta\":{}" : "\"text\":\"\"");
    }
}

static void finish(Conn *c, char *out, size_t *n) {
    char text[1024];
    size_t m = sprintf(text, "%s", last_text[c->chat]);
    m += sprintf(text + m, "data: {\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"%s\",\"choices\":[],"
        "\"usage\":{\"prompt_tokens\":64,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n", model, c->tokens, 64 + c->tokens);
    sprintf(text + m, "data: [DONE]\n\n");
    *n += frame(out + *n, text);
    *n += sprintf(out + *n, "0\r\n\r\n");
}

static void answer(Conn *c, int status, const char *body) {
    char out[4096];
    int n = sprintf(out, "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body), body);
    put(c, out, n);
}

static void whole(Conn *c) {
    char *text = malloc(c->tokens * 5 + 1), *body = malloc(c->tokens * 5 + 1024);
    for (int i = 0; i < c->tokens; i++) memcpy(text + 5 * i, " word", 5);
    text[5 * c->tokens] = 0;
    sprintf(body, "{\"id\":\"c\",\"object\":\"x\",\"created\":1,\"model\":\"%s\",\"choices\":[{\"index\":0,%s%s%s,\"finish_reason\":\"length\"}],"
        "\"usage\":{\"prompt_tokens\":64,\"completion_tokens\":%d,\"total_tokens\":%d}}", model,
        c->chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"text\":\"", text, c->chat ? "\"}" : "\"", c->tokens, 64 + c->tokens);
    char first[256];
    int n = sprintf(first, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", strlen(body));
    put(c, first, n);
    put(c, body, strlen(body));
    free(text), free(body);
}

static void tick(Conn *c) {
    char out[4096];
    size_t n = 0;
    if (c->stream) {
        if (!c->sent) { memcpy(out, head, head_n); n = head_n; }
        memcpy(out + n, token_text[c->chat], token_n[c->chat]);
        n += token_n[c->chat];
    }
    int last = ++c->sent == c->tokens;
    if (last && c->stream) finish(c, out, &n);
    c->times[c->sent] = now_ns();
    if (c->stream) put(c, out, n); else if (last) whole(c);
    if (!last) { push((Due){c->received + ttft + c->sent * itl, c, c->received}); return; }
    c->busy = 0;
    int64_t tokens = c->tokens;
    if (log_file && c->stream) { fwrite(&tokens, 8, 1, log_file); fwrite(c->times, 8, tokens + 1, log_file); }
}

static long field(const char *body, const char *name, long otherwise) {
    const char *at = strstr(body, name);
    return at ? strtol(at + strlen(name) + strspn(at + strlen(name), "\": "), NULL, 10) : otherwise;
}

static void request(Conn *c, char *text, char *body) {
    if (!strncmp(text, "GET", 3)) {
        char models[512];
        sprintf(models, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"owned_by\":\"truth\",\"max_model_len\":32768}]}", model);
        if (strstr(text, " /v1/models")) answer(c, 200, models);
        else if (strstr(text, " /health")) answer(c, 200, "{}");
        else answer(c, 404, "{\"error\":{\"message\":\"not found\"}}");
        return;
    }
    c->chat = strstr(text, "/chat/completions") != NULL;
    if (!c->chat && !strstr(text, "/v1/completions")) { answer(c, 404, "{\"error\":{\"message\":\"not found\"}}"); return; }
    c->stream = strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true");
    long asked = field(body, "\"max_completion_tokens\"", field(body, "\"max_tokens\"", default_tokens));
    c->tokens = asked > 0 && asked < default_tokens ? asked : default_tokens;
    c->sent = 0, c->busy = 1, c->times[0] = c->received = now_ns();
    push((Due){c->received + ttft, c, c->received});
}

static void readable(Conn *c) {
    for (;;) {
        if (c->size - c->length < 4096) c->buffer = realloc(c->buffer, (c->size = c->size ? c->size * 2 : 8192) + 1);
        ssize_t n = recv(c->fd, c->buffer + c->length, c->size - c->length, 0);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) { drop(c); return; }
        c->length += n;
    }
    c->buffer[c->length] = 0;
    char *end;
    while (!c->busy && c->fd >= 0 && (end = strstr(c->buffer, "\r\n\r\n"))) {
        char *at = strcasestr(c->buffer, "content-length:");
        size_t body = at && at < end ? strtoul(at + 15, NULL, 10) : 0, whole_n = end + 4 - c->buffer + body;
        if (c->length < whole_n) return;
        char kept = c->buffer[whole_n];
        c->buffer[whole_n] = 0;
        request(c, c->buffer, end + 4);
        c->buffer[whole_n] = kept;
        memmove(c->buffer, c->buffer + whole_n, c->length - whole_n + 1);
        c->length -= whole_n;
    }
}

static void stop(int number) { (void)number; over = 1; }

int main(int argc, char **argv) {
    if (argc < 6) { fprintf(stderr, "usage: %s PORT TTFT_US ITL_US TOKENS LOG [MODEL]\n", argv[0]); return 2; }
    ttft = atoll(argv[2]) * 1000, itl = atoll(argv[3]) * 1000, default_tokens = atoi(argv[4]);
    log_file = fopen(argv[5], "wb");
    if (argc > 6) model = argv[6];
    signal(SIGTERM, stop), signal(SIGINT, stop), signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    if (bind(listener, (void *)&address, length) || listen(listener, 8192)) { perror("listen"); return 1; }
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    epoll_fd = epoll_create1(0), timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener}, events[1024];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    while (!over) {
        arm();
        int n = epoll_wait(epoll_fd, events, 1024, 1000);
        for (int i = 0; i < n; i++) {
            void *who = events[i].data.ptr;
            if (who == &timer_fd) {
                uint64_t rung;
                if (read(timer_fd, &rung, 8) < 0 && errno != EAGAIN) perror("timer");
            } else if (who == &listener) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    Conn *c = calloc(1, sizeof *c);
                    c->fd = fd;
                    c->times = malloc((default_tokens + 1) * sizeof *c->times);
                    event.data.ptr = c;
                    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (((Conn *)who)->fd >= 0) {
                readable(who);
            }
        }
        int64_t now = now_ns();
        while (heaped && heap[0].due <= now) {
            Due due = pop();
            if (due.conn->fd >= 0 && due.conn->busy && due.conn->received == due.received) tick(due.conn);
        }
    }
    if (log_file) fclose(log_file);
    return 0;
}
