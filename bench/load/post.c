/* post PORT PATH HEADERS BODY AT_ONCE REQUESTS: the same POST over and over, on AT_ONCE connections that are kept open
 * and each wait for their answer. Prints one line of JSON.
 *
 * An answer is refused unless it is 200 to 202 and holds no `"error"`, which is how the server API says no. Answers
 * have a Content-Length and fit into the buffer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
    int fd;
    size_t length;
    char in[8192];
};

static char request[65536], complaint[128];
static int request_length;
static unsigned refused;

static double seconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void send_request(struct connection *connection) {
    if (send(connection->fd, request, (size_t)request_length, MSG_NOSIGNAL) != request_length) {
        perror("send");
        exit(1);
    }
}

/* Whether a whole answer has come; its end is where the next one would begin. */
static int answered(struct connection *connection) {
    ssize_t got = recv(connection->fd, connection->in + connection->length, sizeof connection->in - connection->length - 1, 0);
    if (got <= 0) {
        fprintf(stderr, "post: the server closed a connection\n");
        exit(1);
    }
    connection->length += (size_t)got;
    connection->in[connection->length] = 0;
    char *body = strstr(connection->in, "\r\n\r\n"), *size = strcasestr(connection->in, "content-length:");
    if (!body) return 0;
    size_t whole = (size_t)(body + 4 - connection->in) + (size > body || !size ? 0 : strtoul(size + 15, NULL, 10));
    if (connection->length < whole) return 0;
    int status = atoi(connection->in + 9);
    if (status < 200 || status > 202 || strstr(body, "\"error\"")) {
        if (!refused++)
            for (size_t i = 0; connection->in[i] >= ' ' && connection->in[i] != '"' && i < sizeof complaint - 1; i++)
                complaint[i] = connection->in[i];
    }
    connection->length = 0;
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    unsigned at_once = (unsigned)atoi(argv[5]), requests = (unsigned)atoi(argv[6]), sent = 0, done = 0;
    request_length = snprintf(request, sizeof request,
                              "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n%s%sContent-Length: %zu\r\n\r\n%s",
                              argv[2], argv[3], *argv[3] ? "\r\n" : "", strlen(argv[4]), argv[4]);
    if (request_length >= (int)sizeof request || !at_once || at_once > requests) return 2;
    int epoll = epoll_create1(0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct connection *connections = calloc(at_once, sizeof *connections);
    if (!connections) abort();
    double start = seconds(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < at_once; i++, sent++) {
        struct connection *connection = &connections[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        connection->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(connection->fd, (struct sockaddr *)&address, sizeof address)) {
            perror("connect");
            return 1;
        }
        setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event);
        send_request(connection);
    }
    while (done < requests) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll, events, 256, 10000);
        if (count <= 0) {
            fprintf(stderr, "post: no answer within 10 s\n");
            return 1;
        }
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!answered(connection)) continue;
            done++;
            if (sent < requests) {
                sent++;
                send_request(connection);
            }
        }
    }
    printf("{\"seconds\": %.6f, \"generator_cpu\": %.6f, \"refused\": %u, \"complaint\": \"%s\"}\n",
           seconds(CLOCK_MONOTONIC) - start, seconds(CLOCK_PROCESS_CPUTIME_ID), refused, complaint);
    return 0;
}
