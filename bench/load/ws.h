/* RFC 6455 as a client needs it: one request, masked frames out, frames in at whatever length they arrive. */
#ifndef WS_H
#define WS_H

#include <stddef.h>
#include <stdint.h>

enum ws_opcode { WS_CONTINUATION = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

struct ws_parser {
    uint8_t head[10]; /* a header that has arrived in part */
    uint8_t head_length;
    uint8_t opcode;
    uint8_t final;
    uint64_t left; /* of the payload of the frame that is being read */
};

/* What ws_parse calls: `end` says that the frame ends with this piece, perhaps an empty one. */
typedef void ws_payload(void *owner, uint8_t opcode, int final, const char *piece, size_t length, int end);

/* The request, with the sample key of RFC 6455 section 1.3. Returns its length. */
size_t ws_request(char *out, size_t capacity, const char *path, const char *host, int port, const char *protocol);

/* Whether this response head accepts that request. */
int ws_accepted(const char *head);

/* Reads all of `data`. Returns 0, or -1 when a server's frame is masked or has reserved bits. */
int ws_parse(struct ws_parser *parser, const char *data, size_t length, ws_payload *payload, void *owner);

/* Writes the header of a frame of `length` bytes; a client's has room for the mask. Returns its length. */
size_t ws_header(char *out, uint8_t opcode, size_t length, int masked);

/* One masked frame. `out` has room for length + 14. Returns its length. */
size_t ws_frame(char *out, uint8_t opcode, const char *payload, size_t length);

#endif
