/* A Git server over HTTP that only says which refs there are, from memory, for a few microseconds a question.
 *
 * Every path is a repository with the same refs: GET …/info/refs?service=git-upload-pack is answered in protocol 2 or 0, as
 * `Git-Protocol` asks, and POST …/git-upload-pack with the command ls-refs, where ref-prefix narrows the answer as git
 * does. One process, one epoll; an answer may be held back for some milliseconds, for thousands at a time.
 *
 *     gitanswer [-r refs] [-d delay_ms] [-n ports]
 *
 * It listens on free ports of 127.0.0.1, prints "ready PORT PORT …", and ends with whoever started it. At SIGTERM it prints
 * how many questions it answered. It trusts its askers, which are ours: this is no server for anybody else.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { INPUT = 8192, PREFIXES = 64, EVENTS = 512, MAX_PORTS = 4096 };

struct buffer {
    char *bytes;
    size_t length, room;
};

struct connection {
    int descriptor;
    int wants_write, waiting, gone;
    size_t filled;
    char input[INPUT];
    struct buffer output;
    size_t written;
    int64_t due_ms;
    struct connection *earlier, *later; /* those that wait, in the order in which they are due */
};

struct ref {
    char name[96];
    size_t at, length, plain_length; /* its packet in `listed`; HEAD has one with and one without its target */
};

static struct ref *refs;
static size_t ref_count = 6;
static struct buffer listed, plain_head, advertised_0, advertised_2;
static int delay_ms, epoll;
static struct connection *first_waiting, *last_waiting;
static uint64_t answered;
static volatile sig_atomic_t stopping;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void put(struct buffer *to, const void *bytes, size_t length) {
    if (to->length + length > to->room) {
        to->room = (to->length + length) * 2;
        to->bytes = realloc(to->bytes, to->room);
        if (!to->bytes) die("realloc");
    }
    memcpy(to->bytes + to->length, bytes, length);
    to->length += length;
}

static size_t packet(struct buffer *to, const char *text, size_t length) {
    char digits[24];
    snprintf(digits, sizeof digits, "%04zx", length + 4);
    put(to, digits, 4);
    put(to, text, length);
    return length + 4;
}

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* -- the refs ------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct ref *)a)->name, ((const struct ref *)b)->name);
}

static void make_refs(void) {
    static const char *few[] = {"HEAD", "refs/heads/main", "refs/heads/next", "refs/heads/release", "refs/tags/v1.0.0",
                                "refs/tags/v1.1.0"};
    char line[256], id[41];
    refs = calloc(ref_count, sizeof *refs);
    if (!refs) die("calloc");
    for (size_t n = 0; n < ref_count; n++)
        if (n < sizeof few / sizeof *few) snprintf(refs[n].name, sizeof refs[n].name, "%s", few[n]);
        else snprintf(refs[n].name, sizeof refs[n].name, "refs/heads/team/feature-%05zu", n);
    qsort(refs, ref_count, sizeof *refs, by_name);
    for (size_t n = 0; n < ref_count; n++) {
        int is_head = !strcmp(refs[n].name, "HEAD");
        /* HEAD is main's commit. */
        snprintf(id, sizeof id, "%040x", strcmp(refs[n].name, "refs/heads/main") && !is_head ? (unsigned)n + 0x1000 : 0xabc);
        refs[n].at = listed.length;
        snprintf(line, sizeof line, "%s %s%s\n", id, refs[n].name, is_head ? " symref-target:refs/heads/main" : "");
        refs[n].length = packet(&listed, line, strlen(line));
        if (is_head) {
            snprintf(line, sizeof line, "%s HEAD\n", id);
            packet(&plain_head, line, strlen(line));
        }
    }
    static const char *spoken[] = {"version 2\n", "agent=gitanswer\n", "ls-refs=unborn\n", "fetch=shallow\n",
                                   "server-option\n", "object-format=sha1\n"};
    for (size_t n = 0; n < sizeof spoken / sizeof *spoken; n++) packet(&advertised_2, spoken[n], strlen(spoken[n]));
    put(&advertised_2, "0000", 4);
    packet(&advertised_0, "# service=git-upload-pack\n", 26);
    put(&advertised_0, "0000", 4);
    for (size_t n = 0; n < ref_count; n++) {
        static const char capabilities[] = "multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since "
                                           "deepen-not deepen-relative no-progress include-tag multi_ack_detailed "
                                           "no-done symref=HEAD:refs/heads/main object-format=sha1 agent=gitanswer";
        char first[512];
        memcpy(id, listed.bytes + refs[n].at + 4, 40);
        id[40] = 0;
        size_t length = (size_t)snprintf(first, sizeof first, "%s %s", id, refs[n].name);
        if (n == 0) {
            first[length++] = 0;
            memcpy(first + length, capabilities, sizeof capabilities - 1);
            length += sizeof capabilities - 1;
        }
        first[length++] = '\n';
        packet(&advertised_0, first, length);
    }
    put(&advertised_0, "0000", 4);
}

/* The first ref whose name is not before `prefix`; with `beyond` the first that is behind all that begin with it. */
static size_t find(const char *prefix, size_t length, int beyond) {
    size_t low = 0, high = ref_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strncmp(refs[middle].name, prefix, length);
        if (order < 0 || (beyond && order == 0)) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void put_range(struct buffer *to, size_t from, size_t until, int symrefs) {
    if (from >= until) return;
    if (from == 0 && !symrefs) {
        put(to, plain_head.bytes, plain_head.length);
        if (++from == until) return;
    }
    put(to, listed.bytes + refs[from].at, refs[until - 1].at + refs[until - 1].length - refs[from].at);
}

/* The answer to an ls-refs command; 0 if the body is none. */
static int list_refs(struct buffer *to, const char *body, size_t length) {
    struct { size_t from, until; } ranges[PREFIXES];
    size_t count = 0, at = 0;
    int is_ls_refs = 0, symrefs = 0, any = 0;
    while (at + 4 <= length) {
        char digits[5] = {body[at], body[at + 1], body[at + 2], body[at + 3], 0};
        size_t size = strtoul(digits, NULL, 16);
        if (size < 4) {
            at += 4;
            continue;
        }
        if (at + size > length) return 0;
        const char *text = body + at + 4;
        size_t text_length = size - 4;
        if (text_length && text[text_length - 1] == '\n') text_length--;
        if (text_length == 15 && !memcmp(text, "command=ls-refs", 15)) is_ls_refs = 1;
        else if (text_length == 7 && !memcmp(text, "symrefs", 7)) symrefs = 1;
        else if (text_length > 11 && !memcmp(text, "ref-prefix ", 11)) {
            any = 1;
            size_t from = find(text + 11, text_length - 11, 0), until = find(text + 11, text_length - 11, 1);
            /* Kept in order, so that each ref is said once, in the order of names. */
            size_t place = count;
            if (count == PREFIXES) return 0;
            while (place && ranges[place - 1].from > from) {
                ranges[place] = ranges[place - 1];
                place--;
            }
            ranges[place].from = from;
            ranges[place].until = until;
            count++;
        }
        at += size;
    }
    if (!is_ls_refs) return 0;
    if (!any) put_range(to, 0, ref_count, symrefs);
    size_t done = 0;
    for (size_t n = 0; n < count; n++) {
        size_t from = ranges[n].from > done ? ranges[n].from : done;
        if (ranges[n].until <= from) continue;
        put_range(to, from, ranges[n].until, symrefs);
        done = ranges[n].until;
    }
    put(to, "0000", 4);
    return 1;
}

/* -- HTTP ----------------------------------------------------------------------------------------------------------- */

static void answer(struct buffer *to, const char *status, const char *type, const char *body, size_t length) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: application/x-git-upload-pack-%s\r\n"
                                        "Cache-Control: no-cache\r\nContent-Length: %zu\r\n\r\n", status, type, length);
    put(to, head, (size_t)n);
    put(to, body, length);
}

/* The value of a header in the lines up to `end`, or NULL. */
static const char *header(const char *lines, const char *end, const char *name, size_t length) {
    const char *line = lines;
    while ((line = memchr(line, '\n', (size_t)(end - line))) && ++line + length < end)
        if (line[length] == ':' && !strncasecmp(line, name, length)) {
            line += length + 1;
            while (*line == ' ') line++;
            return line;
        }
    return NULL;
}

/* Compose the answer to the request in `input`, if all of it is there. 1: composed, 0: more is to come, -1: nonsense. */
static int compose(struct connection *c) {
    static struct buffer body;
    char *end = memmem(c->input, c->filled, "\r\n\r\n", 4);
    if (!end) return c->filled == INPUT ? -1 : 0;
    end += 4;
    size_t length = 0;
    c->output.length = c->written = 0;
    if (!memcmp(c->input, "GET ", 4)) {
        char *line_end = memchr(c->input, '\r', c->filled);
        if (memmem(c->input, (size_t)(line_end - c->input), "/info/refs?service=git-upload-pack", 34)) {
            const char *protocol = header(c->input, end, "git-protocol", 12);
            if (protocol && !strncmp(protocol, "version=2", 9))
                answer(&c->output, "200 OK", "advertisement", advertised_2.bytes, advertised_2.length);
            else answer(&c->output, "200 OK", "advertisement", advertised_0.bytes, advertised_0.length);
        } else answer(&c->output, "404 Not Found", "none", "", 0);
    } else if (!memcmp(c->input, "POST ", 5)) {
        const char *said = header(c->input, end, "content-length", 14);
        if (!said) return -1;
        length = strtoul(said, NULL, 10);
        if (length > (size_t)(c->input + INPUT - end)) return -1;
        if ((size_t)(c->input + c->filled - end) < length) return 0;
        body.length = 0;
        if (list_refs(&body, end, length)) answer(&c->output, "200 OK", "result", body.bytes, body.length);
        else answer(&c->output, "400 Bad Request", "none", "", 0);
    } else return -1;
    size_t used = (size_t)(end - c->input) + length;
    memmove(c->input, c->input + used, c->filled - used);
    c->filled -= used;
    return 1;
}

static void unqueue(struct connection *c) {
    if (!c->waiting) return;
    if (c->earlier) c->earlier->later = c->later;
    else first_waiting = c->later;
    if (c->later) c->later->earlier = c->earlier;
    else last_waiting = c->earlier;
    c->waiting = 0;
}

static struct connection *buried;

static void drop(struct connection *c) {
    if (c->gone) return;
    unqueue(c);
    close(c->descriptor);
    /* Freed when this round of events is over: another event of it may name the same connection. */
    c->gone = 1;
    c->later = buried;
    buried = c;
}

static void watch(struct connection *c, int write) {
    if (c->wants_write == write) return;
    struct epoll_event event = {.events = write ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    c->wants_write = write;
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->descriptor, &event)) die("epoll_ctl");
}

static void send_on(struct connection *c) {
    while (c->written < c->output.length) {
        ssize_t n = send(c->descriptor, c->output.bytes + c->written, c->output.length - c->written, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) watch(c, 1);
            else drop(c);
            return;
        }
        c->written += (size_t)n;
    }
    answered++;
    c->output.length = c->written = 0;
    watch(c, 0);
}

static void receive(struct connection *c) {
    ssize_t n = recv(c->descriptor, c->input + c->filled, INPUT - c->filled, 0);
    if (n < 0 && errno == EAGAIN) return;
    /* Who speaks while its answer is held back is no asker of ours, unless it hangs up. */
    if (n <= 0 || c->waiting) {
        drop(c);
        return;
    }
    c->filled += (size_t)n;
    int composed = compose(c);
    if (composed < 0) drop(c);
    else if (composed && delay_ms) {
        c->due_ms = now_ms() + delay_ms;
        c->waiting = 1;
        c->later = NULL;
        c->earlier = last_waiting;
        if (last_waiting) last_waiting->later = c;
        else first_waiting = c;
        last_waiting = c;
    } else if (composed) send_on(c);
}

static void accept_all(int listener) {
    int descriptor, yes = 1;
    while ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->descriptor = descriptor;
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event)) die("epoll_ctl");
    }
}

/* Who listens is told apart from connections by the address of its event's data. */
static int listeners[MAX_PORTS];

static void serve(int ports) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int n = 0; n < ports; n++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listeners[n]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[n], &event)) die("epoll_ctl");
    }
    struct epoll_event events[EVENTS];
    while (!stopping) {
        int64_t patience = first_waiting ? first_waiting->due_ms - now_ms() : -1;
        int count = epoll_wait(epoll, events, EVENTS, first_waiting ? (patience > 0 ? (int)patience : 0) : -1);
        for (int n = 0; n < count; n++) {
            int *listener = events[n].data.ptr;
            if (listener >= listeners && listener < listeners + ports) {
                accept_all(*listener);
                continue;
            }
            struct connection *c = events[n].data.ptr;
            if (c->gone) continue;
            if (events[n].events & EPOLLOUT) send_on(c);
            else receive(c);
        }
        if (first_waiting) {
            int64_t now = now_ms();
            struct connection *c;
            while ((c = first_waiting) && c->due_ms <= now) {
                unqueue(c);
                send_on(c);
            }
        }
        while (buried) {
            struct connection *c = buried;
            buried = c->later;
            free(c->output.bytes);
            free(c);
        }
    }
    printf("answered %llu\n", (unsigned long long)answered);
    fflush(stdout);
}

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static int listen_somewhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 65535) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        die("listen");
    printf(" %d", ntohs(address.sin_port));
    return listener;
}

int main(int argc, char **argv) {
    int option, ports = 1;
    while ((option = getopt(argc, argv, "r:d:n:")) >= 0) {
        if (option == 'r') ref_count = strtoul(optarg, NULL, 10);
        else if (option == 'd') delay_ms = atoi(optarg);
        else if (option == 'n') ports = atoi(optarg);
        else return 2;
    }
    if (ref_count < 1 || ports < 1 || ports > MAX_PORTS) return 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    make_refs();
    printf("ready");
    for (int n = 0; n < ports; n++) listeners[n] = listen_somewhere();
    printf("\n");
    fflush(stdout);
    serve(ports);
    return 0;
}
