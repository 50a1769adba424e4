/* A load of WebSocket clients, driven line by line over standard input; each command is answered with one line of JSON.
 *
 *   open TOTAL AT_ONCE        subscribers until there are TOTAL, with AT_ONCE handshakes under way
 *   publishers                the connections that only publish (--publish-port)
 *   stall COUNT               the last COUNT subscribers stop reading
 *   window COUNT SECONDS PUBLISHERS     publish with COUNT messages in flight: the next goes out when an older one has
 *                                       reached all
 *   rate PER_SECOND SECONDS PUBLISHERS  publish at this rate, whatever comes back
 *   rest SECONDS              answer pings, no more
 *
 * One thread. Nothing is stored of a message but its numbers: a mark `@` and 26 digits, found with memchr in
 * whatever pieces arrive, so that the load costs less than any server it measures.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* the path is a format given by the bench */

enum { DIGITS_MESSAGE = 10, DIGITS_CHANNEL = 6, DIGITS_SEQUENCE = 10, MARK = 1 + 26, RING = 1 << 16 };

struct message {
    uint64_t sent; /* ns */
    uint32_t waiting;
};

struct options options = {.host = "127.0.0.1", .channel = "c%u", .path = "/", .channels = 1, .size = 128,
                          .publishers = 1, .patience = 20};

static const struct dialect *dialect;
static int epoll;
static char *buffer;
enum { BUFFER = 1 << 18 };

static struct client **subscribers, **publishers;
static uint32_t subscriber_count, live, under_way, reading;
/* A lane is what has an order: one publisher's messages to one channel. Channels that are a subscriber's own have one
 * publisher, and so one lane; to a shared channel each publisher sends in turn. */
static uint32_t *sequences; /* of each lane */
static uint32_t channel_count, lanes_each;
static struct message ring[RING];
static uint64_t published, expected, in_flight;
static uint64_t ended_unasked;
static struct tally tally;
static struct histogram latencies;
static char complaint[256];

static struct client **dirty;
static size_t dirty_count, dirty_capacity;

static uint64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void complain(const char *what, const char *text, size_t length) {
    if (*complaint) return;
    int at = snprintf(complaint, sizeof complaint, "%s: ", what);
    for (size_t i = 0; i < length && at < (int)sizeof complaint - 1; i++)
        if (text[i] >= ' ' && text[i] != '"' && text[i] != '\\' && text[i] < 127) complaint[at++] = text[i];
    complaint[at] = 0;
}

uint32_t channel_of(const struct client *client, uint32_t nth) {
    return options.own ? client->index * options.channels + nth : nth;
}

static void end(struct client *client, const char *why) {
    if (client->stage == ENDED) return;
    if (client->stage != LIVE) {
        under_way--;
    } else if (!client->publisher_only) {
        live--;
        if (!client->stalled) reading--;
    }
    client->stage = ENDED;
    close(client->fd);
    if (client->stalled) return; /* what is to be expected of somebody who does not read */
    ended_unasked++;
    complain("connection ended", why, strlen(why));
}

static void watch(struct client *client, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, operation, client->fd, &event)) {
        perror("epoll_ctl");
        exit(1);
    }
}

/* Sending: frames gather in `out`, and each client that has some is written once per turn of the loop. */

static void reserve(struct client *client, size_t length) {
    if (client->out_length + length <= client->out_capacity) return;
    client->out_capacity = (client->out_length + length) * 2;
    client->out = realloc(client->out, client->out_capacity);
    if (!client->out) abort();
}

static void mark_dirty(struct client *client) {
    if (client->out_length || client->stage == ENDED) return;
    if (dirty_count == dirty_capacity) {
        dirty_capacity = dirty_capacity ? dirty_capacity * 2 : 1024;
        dirty = realloc(dirty, dirty_capacity * sizeof *dirty);
        if (!dirty) abort();
    }
    dirty[dirty_count++] = client;
}

static void queue_frame(struct client *client, uint8_t opcode, const char *text, size_t length) {
    mark_dirty(client);
    reserve(client, length + 14);
    client->out_length += ws_frame(client->out + client->out_length, opcode, text, length);
}

void say(struct client *client, const char *text, size_t length) {
    queue_frame(client, dialect->opcode, text, length);
}

static void flush(struct client *client) {
    if (client->stage == ENDED) return;
    ssize_t sent = send(client->fd, client->out + client->out_sent, client->out_length - client->out_sent,
                        MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) {
        end(client, strerror(errno));
        return;
    }
    if (sent > 0) client->out_sent += (size_t)sent;
    int rest = client->out_sent < client->out_length;
    if (!rest) client->out_sent = client->out_length = 0;
    if (rest != client->waits_for_room) {
        client->waits_for_room = (uint8_t)rest;
        watch(client, EPOLLIN | (rest ? (uint32_t)EPOLLOUT : 0), EPOLL_CTL_MOD);
    }
    if (client->stage == LIVE && !client->out_length) { /* 10,000 idle clients need no buffers */
        free(client->out);
        client->out = NULL;
        client->out_capacity = 0;
    }
}

static void flush_dirty(void) {
    for (size_t i = 0; i < dirty_count; i++) flush(dirty[i]);
    dirty_count = 0;
}

/* Receiving */

static void became(struct client *client, enum verdict verdict) {
    if (verdict == FAILED) {
        end(client, "refused");
    } else if (verdict == READY && client->stage != LIVE) {
        client->stage = LIVE;
        under_way--;
        if (!client->publisher_only) {
            live++;
            reading++;
        }
    }
}

static void delivery(struct client *client) {
    uint64_t message = client->number[0], lane = client->number[1], sequence = client->number[2];
    if (client->publisher_only) return;
    uint64_t first = options.own ? (uint64_t)client->index * options.channels : 0;
    if (lane < first || lane - first >= lanes_each) {
        tally.foreign++;
        return;
    }
    uint64_t wrong = tally.duplicated;
    tally_delivery(&tally, &client->tracks[lane - first], (uint32_t)sequence);
    if (wrong != tally.duplicated || message > published || message + RING <= published) return;
    struct message *entry = &ring[message % RING];
    histogram_add(&latencies, now_ns(CLOCK_MONOTONIC) - entry->sent);
    if (entry->waiting && --entry->waiting == 0) in_flight--;
}

static void digit(struct client *client, char c) {
    unsigned nth = client->digits++ - 1u;
    unsigned which = nth < DIGITS_MESSAGE ? 0 : nth < DIGITS_MESSAGE + DIGITS_CHANNEL ? 1 : 2;
    client->number[which] = client->number[which] * 10 + (uint64_t)(c - '0');
    if (client->digits == MARK) {
        client->digits = 0;
        client->marked = 1;
        delivery(client);
    }
}

static void document_part(struct client *client, const char *piece, size_t length, int complete) {
    if (!client->marked && complete && !client->text_length) {
        if (length) became(client, dialect->document(client, piece, length));
    } else if (!client->marked) {
        client->text = realloc(client->text, client->text_length + length + 1);
        if (!client->text) abort();
        memcpy(client->text + client->text_length, piece, length);
        client->text_length += length;
        if (complete && client->text_length)
            became(client, dialect->document(client, client->text, client->text_length));
    }
    if (!complete) return;
    free(client->text);
    client->text = NULL;
    client->text_length = 0;
    client->marked = 0;
}

static void text_piece(struct client *client, const char *piece, size_t length, int last) {
    last = last && !dialect->stream;
    while (length) {
        if (client->digits) {
            digit(client, *piece++);
            length--;
            continue;
        }
        const char *newline = dialect->lines ? memchr(piece, '\n', length) : NULL;
        size_t span = newline ? (size_t)(newline - piece) : length;
        const char *mark = client->marked || client->stage != LIVE ? NULL : memchr(piece, '@', span);
        if (mark) {
            memset(client->number, 0, sizeof client->number);
            client->digits = 1;
            length -= (size_t)(mark + 1 - piece);
            piece = mark + 1;
            continue;
        }
        document_part(client, piece, span, newline != NULL || (last && span == length));
        if (client->stage == ENDED) return;
        size_t used = span + (newline != NULL);
        piece += used;
        length -= used;
        if (!length) return;
    }
    if (last) document_part(client, piece, 0, 1);
}

static void on_payload(void *owner, uint8_t opcode, int final, const char *piece, size_t length, int last) {
    struct client *client = owner;
    if (client->stage == ENDED) return;
    if (opcode < WS_CLOSE) {
        text_piece(client, piece, length, last && final);
        return;
    }
    size_t room = sizeof client->control - client->control_length;
    if (length > room) length = room;
    memcpy(client->control + client->control_length, piece, length);
    client->control_length += (uint8_t)length;
    if (!last) return;
    if (opcode == WS_PING) queue_frame(client, WS_PONG, client->control, client->control_length);
    if (opcode == WS_CLOSE) {
        char why[140] = "without a code";
        if (client->control_length >= 2)
            snprintf(why, sizeof why, "closed %d %.*s", (uint8_t)client->control[0] << 8 | (uint8_t)client->control[1],
                     client->control_length - 2, client->control + 2);
        end(client, why);
    }
    client->control_length = 0;
}

static void on_head(struct client *client, const char *data, size_t length) {
    client->text = realloc(client->text, client->text_length + length + 1);
    if (!client->text) abort();
    memcpy(client->text + client->text_length, data, length);
    client->text_length += length;
    client->text[client->text_length] = 0;
    char *over = strstr(client->text, "\r\n\r\n");
    if (!over) return;
    char *head = client->text;
    size_t rest = client->text_length - (size_t)(over + 4 - head);
    client->text = NULL;
    client->text_length = 0;
    over[2] = 0;
    if (!ws_accepted(head)) {
        complain("handshake", head, strcspn(head, "\r"));
        end(client, "handshake refused");
    } else {
        client->stage = SUBSCRIBING;
        became(client, dialect->opened(client));
        if (rest && ws_parse(&client->parser, over + 4, rest, on_payload, client)) end(client, "not a server's frame");
    }
    free(head);
}

static void on_readable(struct client *client) {
    ssize_t length = recv(client->fd, buffer, BUFFER, MSG_DONTWAIT);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) {
        end(client, length ? strerror(errno) : "by the server");
    } else if (client->stage == HANDSHAKE) {
        on_head(client, buffer, (size_t)length);
    } else if (ws_parse(&client->parser, buffer, (size_t)length, on_payload, client)) {
        end(client, "not a server's frame");
    }
}

static void on_connected(struct client *client) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        end(client, strerror(error));
        return;
    }
    char path[512];
    snprintf(path, sizeof path, options.path, channel_of(client, 0));
    client->stage = HANDSHAKE;
    reserve(client, 1024);
    mark_dirty(client);
    client->out_length = ws_request(client->out, client->out_capacity, path, options.host,
                                    options.ports[client->index % (uint32_t)options.port_count], dialect->subprotocol);
    client->waits_for_room = 1; /* so that flush asks for reading only */
}

/* One turn of the loop: waits at most until `deadline`. */
static void turn(uint64_t deadline) {
    static struct epoll_event events[1024];
    uint64_t now = now_ns(CLOCK_MONOTONIC), wait = deadline > now ? deadline - now : 0;
    struct timespec timeout = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
    int count = epoll_pwait2(epoll, events, 1024, &timeout, NULL);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        if (client->stage == ENDED) continue;
        if (client->stalled) {
            end(client, "");
        } else if (client->stage == CONNECTING) {
            on_connected(client);
        } else {
            if (events[i].events & EPOLLOUT) flush(client);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(client);
        }
    }
    flush_dirty();
}

static struct client *new_client(uint32_t index, int port, int publisher_only) {
    struct client *client = calloc(1, sizeof *client);
    if (!client) abort();
    client->index = index;
    client->publisher_only = (uint8_t)publisher_only;
    if (!publisher_only) client->tracks = calloc(lanes_each, sizeof *client->tracks);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->fd < 0) {
        perror("socket");
        exit(1);
    }
    int one = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (options.stalled_window)
        setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &options.stalled_window, sizeof options.stalled_window);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, options.host, &address.sin_addr);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
    under_way++;
    watch(client, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
    return client;
}

/* Commands */

static void answer_opened(uint32_t count, double seconds) {
    printf("{\"open\": %u, \"failed\": %lu, \"seconds\": %.6f, \"complaint\": \"%s\"}\n", count, ended_unasked, seconds,
           complaint);
}

static void open_subscribers(uint32_t total, uint32_t at_once) {
    uint64_t start = now_ns(CLOCK_MONOTONIC), deadline = start + 180000000000u;
    subscribers = realloc(subscribers, total * sizeof *subscribers);
    channel_count = options.own ? total * options.channels : options.channels;
    lanes_each = options.own ? options.channels : options.channels * (uint32_t)options.publishers;
    size_t lanes = options.own ? channel_count : lanes_each;
    sequences = realloc(sequences, lanes * sizeof *sequences);
    if (!subscribers || !sequences) abort();
    memset(sequences, 0, lanes * sizeof *sequences);
    for (uint32_t i = 0; i < subscriber_count; i++)
        memset(subscribers[i]->tracks, 0, lanes_each * sizeof(struct track));
    while ((subscriber_count < total || under_way) && !ended_unasked && now_ns(CLOCK_MONOTONIC) < deadline) {
        for (; subscriber_count < total && under_way < at_once; subscriber_count++) {
            int port = options.ports[subscriber_count % (uint32_t)options.port_count];
            subscribers[subscriber_count] = new_client(subscriber_count, port, 0);
        }
        turn(now_ns(CLOCK_MONOTONIC) + 100000000u);
    }
    answer_opened(live, (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9);
}

static void open_publishers(void) {
    uint64_t start = now_ns(CLOCK_MONOTONIC), deadline = start + 30000000000u;
    publishers = calloc((size_t)options.publishers, sizeof *publishers);
    if (!publishers) abort();
    for (int i = 0; i < options.publishers; i++) publishers[i] = new_client((uint32_t)i, options.publish_port, 1);
    while (under_way && !ended_unasked && now_ns(CLOCK_MONOTONIC) < deadline) turn(now_ns(CLOCK_MONOTONIC) + 100000000u);
    answer_opened((uint32_t)options.publishers, (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9);
}

static void stall(uint32_t count) {
    for (uint32_t i = subscriber_count - count; i < subscriber_count; i++) {
        subscribers[i]->stalled = 1;
        reading--;
        watch(subscribers[i], EPOLLRDHUP, EPOLL_CTL_MOD);
    }
    printf("{\"stalled\": %u}\n", count);
}

static void publish(uint32_t taking_turns) {
    static char payload[1 << 16];
    uint32_t channel = (uint32_t)(published % channel_count), count = (uint32_t)options.publishers;
    uint32_t nth = options.own ? channel % count : (uint32_t)(published % taking_turns);
    uint32_t lane = options.own ? channel : channel * count + nth;
    struct client *client = publishers ? publishers[nth] : subscribers[options.own ? channel / options.channels : nth];
    if (client->stage == ENDED) return;
    uint64_t message = ++published;
    struct message *entry = &ring[message % RING];
    if (entry->waiting) in_flight--; /* overwritten: it stays among the lost */
    uint32_t reach = options.own ? 1 : reading;
    expected += reach;
    in_flight += reach > 0;
    int length = snprintf(payload, sizeof payload, "@%010lu%06u%010u", message, lane, ++sequences[lane]);
    memset(payload + length, 'x', options.size - (size_t)length);
    *entry = (struct message){.sent = now_ns(CLOCK_MONOTONIC), .waiting = reach};
    dialect->publish(client, channel, payload, options.size);
}

static void run(uint64_t window, double rate, double seconds, uint32_t taking_turns) {
    memset(&tally, 0, sizeof tally);
    memset(&latencies, 0, sizeof latencies);
    uint64_t first = published, expected_before = expected;
    uint64_t start = now_ns(CLOCK_MONOTONIC), cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t stop = start + (uint64_t)(seconds * 1e9), drained = stop + (uint64_t)options.patience * 1000000000u;
    uint64_t now = start, due = window ? stop : start; /* at a rate: when the next message goes out, be it late */
    while (now < stop || due < stop || (in_flight && now < drained)) {
        uint64_t next = now < stop ? stop : drained;
        if (now < stop && window)
            while (in_flight < window) publish(taking_turns);
        while (due < stop && due <= now) {
            publish(taking_turns);
            due = start + (uint64_t)((double)(published - first) * 1e9 / rate);
        }
        if (due < stop) next = due;
        flush_dirty();
        turn(next);
        now = now_ns(CLOCK_MONOTONIC);
        if (ended_unasked) break;
    }
    uint64_t unique = tally.delivered - tally.duplicated, wanted = expected - expected_before;
    printf("{\"published\": %lu, \"expected\": %lu, \"delivered\": %lu, \"lost\": %ld, \"skipped\": %lu, "
           "\"reordered\": %lu, \"duplicated\": %lu, \"foreign\": %lu, \"seconds\": %.6f, \"generator_cpu\": %.6f, "
           "\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f, \"ended\": %lu, "
           "\"complaint\": \"%s\"}\n",
           published - first, wanted, tally.delivered, (long)(wanted - unique), tally.skipped, tally.reordered,
           tally.duplicated, tally.foreign, (double)(now - start) / 1e9,
           (double)(now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu) / 1e9, (double)histogram_quantile(&latencies, 0.5) / 1e3,
           (double)histogram_quantile(&latencies, 0.9) / 1e3, (double)histogram_quantile(&latencies, 0.99) / 1e3,
           (double)latencies.greatest / 1e3, ended_unasked, complaint);
}

static void rest(double seconds) {
    uint64_t stop = now_ns(CLOCK_MONOTONIC) + (uint64_t)(seconds * 1e9);
    while (now_ns(CLOCK_MONOTONIC) < stop) turn(stop);
    printf("{\"rested\": %.3f, \"open\": %u, \"ended\": %lu, \"complaint\": \"%s\"}\n", seconds, live, ended_unasked,
           complaint);
}

static int may_publish(unsigned count) {
    return count && count <= (unsigned)options.publishers && (publishers || options.own || count <= subscriber_count);
}

/* Set-up */

static void read_tokens(const char *path) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t capacity = 0;
    if (!file) {
        perror(path);
        exit(1);
    }
    while (getline(&line, &capacity, file) > 0) {
        line[strcspn(line, "\n")] = 0;
        options.tokens = realloc(options.tokens, (options.token_count + 1) * sizeof *options.tokens);
        if (!options.tokens) abort();
        options.tokens[options.token_count++] = strdup(line);
    }
    free(line);
    fclose(file);
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"dialect", 1, 0, 'd'}, {"port", 1, 0, 'p'},       {"publish-port", 1, 0, 'P'}, {"publishers", 1, 0, 'n'},
        {"path", 1, 0, 'u'},    {"channel", 1, 0, 'c'},    {"channels", 1, 0, 'k'},     {"own", 0, 0, 'o'},
        {"size", 1, 0, 's'},    {"receive-buffer", 1, 0, 'r'}, {"tokens", 1, 0, 't'},       {"patience", 1, 0, 'w'}, {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) switch (c) {
        case 'd': dialect = find_dialect(optarg); break;
        case 'p': if (options.port_count < 8) options.ports[options.port_count++] = atoi(optarg); break;
        case 'P': options.publish_port = atoi(optarg); break;
        case 'n': options.publishers = atoi(optarg); break;
        case 'u': options.path = optarg; break;
        case 'c': options.channel = optarg; break;
        case 'k': options.channels = (uint32_t)atoi(optarg); break;
        case 'o': options.own = 1; break;
        case 's': options.size = (size_t)atoi(optarg); break;
        case 'r': options.stalled_window = atoi(optarg); break;
        case 'w': options.patience = atoi(optarg); break;
        case 't': read_tokens(optarg); break;
        default: exit(2);
        }
    if (!dialect || !options.port_count || options.size < MARK || options.size > 60000 || !options.channels) {
        fprintf(stderr, "load: --dialect plain|centrifuge|socketio|nats --port N [--port N …] and more: see load.c\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOLBF, 0);
    epoll = epoll_create1(0);
    buffer = malloc(BUFFER);
    if (epoll < 0 || !buffer) abort();
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        unsigned first, second, turns;
        double number, seconds;
        if (sscanf(line, "open %u %u", &first, &second) == 2 && first >= subscriber_count) open_subscribers(first, second);
        else if (strncmp(line, "publishers", 10) == 0 && options.publish_port) open_publishers();
        else if (sscanf(line, "stall %u", &first) == 1 && first <= subscriber_count) stall(first);
        else if (sscanf(line, "window %u %lf %u", &first, &seconds, &turns) == 3 && may_publish(turns)) run(first, 0, seconds, turns);
        else if (sscanf(line, "rate %lf %lf %u", &number, &seconds, &turns) == 3 && may_publish(turns)) run(0, number, seconds, turns);
        else if (sscanf(line, "rest %lf", &seconds) == 1) rest(seconds);
        else printf("{\"complaint\": \"no such command, or not now\"}\n");
    }
    return 0;
}
