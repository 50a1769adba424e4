/* The plainest server there is: every text is sent to everybody, one send() for each message and client.
 *
 * What it costs is the kernel's price of a delivery, which all ratios refer to. It speaks enough of RFC 6455 for
 * that: a handshake, text frames of up to 64 KiB in, the frame made once for all. No Redis, no channels, no pings.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROOM = 1 << 17, CLIENTS = 1 << 16 };

struct client {
    int fd;
    int open; /* the handshake is over */
    int index;
    char *in;
    size_t length, capacity;
};

static struct client *clients[CLIENTS];
static int client_count;

/* SHA-1 (FIPS 180-4) of less than 56 + 64 bytes: the handshake's key and the GUID of RFC 6455 are 60. */
static uint32_t rotate(uint32_t word, int by) { return word << by | word >> (32 - by); }

static void sha1(const char *text, size_t length, uint8_t digest[20]) {
    uint8_t block[128] = {0};
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    memcpy(block, text, length);
    block[length] = 0x80;
    block[126] = (uint8_t)(length * 8 >> 8);
    block[127] = (uint8_t)(length * 8);
    for (int part = 0; part < 2; part++) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const uint8_t *at = block + part * 64 + i * 4;
            w[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                                  : (b ^ c ^ d) + 0xCA62C1D6;
            uint32_t next = rotate(a, 5) + f + e + w[i];
            e = d, d = c, c = rotate(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(h[i / 4] >> (24 - i % 4 * 8));
}

static void base64(const uint8_t *bytes, size_t length, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        uint32_t group = (uint32_t)bytes[i] << 16;
        if (i + 1 < length) group |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < length) group |= bytes[i + 2];
        *out++ = digits[group >> 18];
        *out++ = digits[group >> 12 & 63];
        *out++ = i + 1 < length ? digits[group >> 6 & 63] : '=';
        *out++ = i + 2 < length ? digits[group & 63] : '=';
    }
    *out = 0;
}

static void drop(struct client *client) {
    close(client->fd);
    if (client->open) {
        clients[client->index] = clients[--client_count];
        clients[client->index]->index = client->index;
    }
    free(client->in);
    free(client);
}

/* A client that takes no more loses the message: there is no queue here. */
static void broadcast(const char *payload, size_t length) {
    static char frame[ROOM];
    size_t at = 0;
    frame[at++] = (char)0x81;
    if (length < 126) {
        frame[at++] = (char)length;
    } else {
        frame[at++] = 126;
        frame[at++] = (char)(length >> 8);
        frame[at++] = (char)length;
    }
    memcpy(frame + at, payload, length);
    for (int i = 0; i < client_count; i++) send(clients[i]->fd, frame, at + length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int shake_hands(struct client *client) {
    client->in[client->length] = 0;
    char *over = strstr(client->in, "\r\n\r\n"), *key = strcasestr(client->in, "sec-websocket-key: ");
    char text[64], accept[32], response[256];
    uint8_t digest[20];
    if (!over) return 0;
    if (!key || client_count == CLIENTS) return -1;
    snprintf(text, sizeof text, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key + 19);
    sha1(text, strlen(text), digest);
    base64(digest, sizeof digest, accept);
    int length = snprintf(response, sizeof response,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    send(client->fd, response, (size_t)length, MSG_NOSIGNAL);
    size_t used = (size_t)(over + 4 - client->in);
    memmove(client->in, client->in + used, client->length -= used);
    client->open = 1;
    client->index = client_count;
    clients[client_count++] = client;
    return 1;
}

/* Reads the frames that are whole. Returns -1 at a close frame or one that is too long. */
static int read_frames(struct client *client) {
    size_t at = 0;
    for (;;) {
        uint8_t *head = (uint8_t *)client->in + at;
        size_t rest = client->length - at, start = 6;
        if (rest < 2) break;
        size_t length = head[1] & 127;
        if (length == 127) return -1;
        if (length == 126) {
            if (rest < 4) break;
            length = (size_t)head[2] << 8 | head[3];
            start = 8;
        }
        if (rest < start + length) break;
        if ((head[0] & 15) == 8) return -1;
        for (size_t i = 0; i < length; i++) head[start + i] ^= head[start - 4 + (i & 3)];
        broadcast((char *)head + start, length);
        at += start + length;
    }
    memmove(client->in, client->in + at, client->length -= at);
    return 0;
}

static void on_readable(struct client *client) {
    if (!client->in || client->length + 1 >= client->capacity) {
        client->capacity = client->in ? ROOM : 1024;
        client->in = realloc(client->in, client->capacity);
        if (!client->in) abort();
    }
    ssize_t length = recv(client->fd, client->in + client->length, client->capacity - client->length - 1, 0);
    if (length <= 0) {
        drop(client);
        return;
    }
    client->length += (size_t)length;
    int good = client->open ? 1 : shake_hands(client);
    if (good > 0) good = read_frames(client);
    if (good < 0) drop(client);
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, epoll = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096) ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) {
        perror("sendloop");
        return 1;
    }
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            if (client) {
                on_readable(client);
                continue;
            }
            client = calloc(1, sizeof *client);
            if (!client) abort();
            client->fd = accept(listener, NULL, NULL);
            if (client->fd < 0) {
                free(client);
                continue;
            }
            setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            event = (struct epoll_event){.events = EPOLLIN, .data.ptr = client};
            epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event);
        }
    }
}
