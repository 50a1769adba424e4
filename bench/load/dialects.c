/* What is said over the WebSocket, for each kind of server. */
#define _GNU_SOURCE
#include "client.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* names of channels are formats given by the bench */

static void sayf(struct client *client, const char *format, ...) {
    static char text[1 << 16];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof text) abort();
    say(client, text, (size_t)length);
}

static const char *channel_name(uint32_t channel) {
    static char name[256];
    snprintf(name, sizeof name, options.channel, channel);
    return name;
}

static int holds(const char *text, size_t length, const char *word) {
    return memmem(text, length, word, strlen(word)) != NULL;
}

static enum verdict answered(struct client *client) {
    return client->unanswered && --client->unanswered == 0 ? READY : MORE;
}

/* Plain text, as on /ws, with nothing to say before it: also nchan, and the C loop. */

static enum verdict plain_opened(struct client *client) {
    (void)client;
    return READY;
}

static enum verdict plain_document(struct client *client, const char *text, size_t length) {
    (void)client, (void)text, (void)length; /* nchan tells publishers how many are subscribed */
    return MORE;
}

static void plain_publish(struct client *client, uint32_t channel, const char *payload, size_t length) {
    (void)channel;
    say(client, payload, length);
}

/* The Centrifuge client protocol in JSON. */

static enum verdict centrifuge_opened(struct client *client) {
    if (options.token_count) {
        uint32_t nth = client->index % (uint32_t)options.token_count;
        sayf(client, "{\"id\":%u,\"connect\":{\"token\":\"%s\"}}", ++client->command, options.tokens[nth]);
    } else {
        sayf(client, "{\"id\":%u,\"connect\":{}}", ++client->command);
    }
    return MORE;
}

static void centrifuge_subscribe(struct client *client) {
    client->unanswered = options.channels;
    for (uint32_t nth = 0; nth < options.channels; nth++)
        sayf(client, "{\"id\":%u,\"subscribe\":{\"channel\":\"%s\",\"positioned\":true,\"recoverable\":true}}",
             ++client->command, channel_name(channel_of(client, nth)));
}

static enum verdict centrifuge_document(struct client *client, const char *text, size_t length) {
    if (length == 2 && memcmp(text, "{}", 2) == 0) {
        say(client, "{}", 2); /* pong */
        return MORE;
    }
    if (holds(text, length, "\"error\"") || holds(text, length, "\"unsubscribe\"")) {
        complain("refused", text, length);
        return FAILED;
    }
    if (client->stage == LIVE) return MORE; /* the answer to a publish command */
    if (holds(text, length, "\"connect\"")) {
        if (client->publisher_only) return READY;
        centrifuge_subscribe(client);
        return MORE;
    }
    return holds(text, length, "\"subscribe\"") ? answered(client) : MORE;
}

static void centrifuge_publish(struct client *client, uint32_t channel, const char *payload, size_t length) {
    sayf(client, "{\"id\":%u,\"publish\":{\"channel\":\"%s\",\"data\":\"%.*s\"}}", ++client->command,
         channel_name(channel), (int)length, payload);
}

/* Engine.IO 4 with Socket.IO 5 on top; the server joins rooms and passes on events (peers/socketio). */

static enum verdict socketio_opened(struct client *client) {
    (void)client;
    return MORE;
}

static enum verdict socketio_document(struct client *client, const char *text, size_t length) {
    if (length == 1 && *text == '2') {
        say(client, "3", 1);
    } else if (length && *text == '0') {
        say(client, "40", 2);
    } else if (length > 2 && memcmp(text, "40", 2) == 0) {
        if (client->publisher_only) return READY;
        client->unanswered = options.channels;
        for (uint32_t nth = 0; nth < options.channels; nth++)
            sayf(client, "42[\"join\",\"%s\"]", channel_name(channel_of(client, nth)));
    } else if (holds(text, length, "\"joined\"")) {
        return answered(client);
    } else {
        complain("unexpected", text, length);
        return FAILED;
    }
    return MORE;
}

static void socketio_publish(struct client *client, uint32_t channel, const char *payload, size_t length) {
    sayf(client, "42[\"publish\",\"%s\",\"%.*s\"]", channel_name(channel), (int)length, payload);
}

/* NATS: its line protocol in binary frames. */

static enum verdict nats_opened(struct client *client) {
    (void)client;
    return MORE;
}

static enum verdict nats_document(struct client *client, const char *text, size_t length) {
    if (length >= 4 && memcmp(text, "INFO", 4) == 0 && client->stage != LIVE) {
        sayf(client, "CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\n");
        for (uint32_t nth = 0; !client->publisher_only && nth < options.channels; nth++)
            sayf(client, "SUB %s %u\r\n", channel_name(channel_of(client, nth)), nth + 1);
        sayf(client, "PING\r\n");
    } else if (length >= 4 && memcmp(text, "PONG", 4) == 0) {
        return client->stage == LIVE ? MORE : READY;
    } else if (length >= 4 && memcmp(text, "PING", 4) == 0) {
        sayf(client, "PONG\r\n");
    } else if (length >= 4 && memcmp(text, "-ERR", 4) == 0) {
        complain("refused", text, length);
        return FAILED;
    }
    return MORE;
}

static void nats_publish(struct client *client, uint32_t channel, const char *payload, size_t length) {
    sayf(client, "PUB %s %zu\r\n%.*s\r\n", channel_name(channel), length, (int)length, payload);
}

static const struct dialect dialects[] = {
    {"plain", NULL, 0, 0, WS_TEXT, plain_opened, plain_document, plain_publish},
    {"centrifuge", NULL, 1, 0, WS_TEXT, centrifuge_opened, centrifuge_document, centrifuge_publish},
    {"socketio", NULL, 0, 0, WS_TEXT, socketio_opened, socketio_document, socketio_publish},
    {"nats", NULL, 1, 1, WS_BINARY, nats_opened, nats_document, nats_publish},
};

const struct dialect *find_dialect(const char *name) {
    for (size_t i = 0; i < sizeof dialects / sizeof *dialects; i++)
        if (strcmp(dialects[i].name, name) == 0) return &dialects[i];
    return NULL;
}
