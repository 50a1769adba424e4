/* One connection of the load, and what a dialect is. */
#ifndef CLIENT_H
#define CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "tally.h"
#include "ws.h"

enum stage { CONNECTING, HANDSHAKE, SUBSCRIBING, LIVE, ENDED };

struct client {
    int fd;
    uint8_t stage;
    uint8_t stalled;
    uint8_t publisher_only;
    uint8_t waits_for_room; /* part of `out` did not fit into the socket */
    uint32_t index;         /* among the subscribers, or among the publishers */
    uint32_t unanswered;    /* subscriptions asked for */
    uint32_t command;       /* the last command's id */
    struct ws_parser parser;
    /* The document that is being read */
    uint8_t digits; /* 1 + digits read of a mark; 0 = outside one */
    uint8_t marked;
    uint64_t number[3];
    char *text; /* what came of a document without a mark, when it came in pieces */
    size_t text_length;
    uint8_t control_length;
    char control[125];
    char *out;
    size_t out_length, out_sent, out_capacity;
    struct track *tracks;
};

struct options {
    const char *host;
    int ports[8];
    int port_count;
    int publish_port; /* 0: subscribers publish: to channels of their own each, else the first ones in turn */
    int publishers;
    const char *path;    /* may hold one %u: the channel's number */
    const char *channel; /* holds one %u */
    char **tokens;
    size_t token_count;
    uint32_t channels; /* of each subscriber */
    int own;           /* each subscriber has channels of its own; else all have the same */
    size_t size;       /* of what is published, in bytes */
    int patience;       /* seconds that messages still on their way are waited for */
    int stalled_window; /* receive buffer of those that will stop reading, in bytes */
};

extern struct options options;

enum verdict { MORE, READY, FAILED };

/* A protocol on top of WebSocket frames. */
struct dialect {
    const char *name;
    const char *subprotocol;
    int lines;  /* a newline ends a document */
    int stream; /* the end of a frame does not */
    uint8_t opcode;
    enum verdict (*opened)(struct client *client);
    /* A document without a mark: a reply, a ping, an error. */
    enum verdict (*document)(struct client *client, const char *text, size_t length);
    void (*publish)(struct client *client, uint32_t channel, const char *payload, size_t length);
};

const struct dialect *find_dialect(const char *name);

/* Queues one frame with this text for the client. Defined by the loop. */
void say(struct client *client, const char *text, size_t length);

/* The nth channel of this subscriber. */
uint32_t channel_of(const struct client *client, uint32_t nth);

/* Keeps what a server complained about, for the report; the first one counts. */
void complain(const char *what, const char *text, size_t length);

#endif
