#include "ws.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

size_t ws_request(char *out, size_t capacity, const char *path, const char *host, int port, const char *protocol) {
    int length = snprintf(out, capacity,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                          path, host, port, KEY, protocol ? "Sec-WebSocket-Protocol: " : "",
                          protocol ? protocol : "", protocol ? "\r\n" : "");
    return length < 0 || (size_t)length >= capacity ? 0 : (size_t)length;
}

int ws_accepted(const char *head) {
    return strncasecmp(head, "HTTP/1.1 101", 12) == 0 && strstr(head, ACCEPT) != NULL;
}

int ws_parse(struct ws_parser *parser, const char *data, size_t length, ws_payload *payload, void *owner) {
    while (length) {
        if (parser->left) {
            size_t piece = length < parser->left ? length : (size_t)parser->left;
            parser->left -= piece;
            payload(owner, parser->opcode, parser->final, data, piece, parser->left == 0);
            data += piece;
            length -= piece;
            continue;
        }
        parser->head[parser->head_length++] = (uint8_t)*data++;
        length--;
        if (parser->head_length < 2) continue;
        uint8_t size = parser->head[1];
        if (size & 0x80 || parser->head[0] & 0x70) return -1;
        uint8_t whole = size < 126 ? 2 : size == 126 ? 4 : 10;
        if (parser->head_length < whole) continue;
        parser->left = size < 126 ? size : 0;
        for (uint8_t i = 2; i < whole; i++) parser->left = parser->left << 8 | parser->head[i];
        parser->final = parser->head[0] >> 7;
        parser->opcode = parser->head[0] & 15;
        parser->head_length = 0;
        if (!parser->left) payload(owner, parser->opcode, parser->final, data, 0, 1);
    }
    return 0;
}

size_t ws_header(char *out, uint8_t opcode, size_t length, int masked) {
    size_t at = 0;
    uint8_t bit = masked ? 0x80 : 0;
    out[at++] = (char)(0x80 | opcode);
    if (length < 126) {
        out[at++] = (char)(bit | length);
    } else if (length < 65536) {
        out[at++] = (char)(bit | 126);
        out[at++] = (char)(length >> 8);
        out[at++] = (char)length;
    } else {
        out[at++] = (char)(bit | 127);
        for (int shift = 56; shift >= 0; shift -= 8) out[at++] = (char)(length >> shift);
    }
    return at;
}

size_t ws_frame(char *out, uint8_t opcode, const char *payload, size_t length) {
    size_t at = ws_header(out, opcode, length, 1);
    memcpy(out + at, MASK, sizeof MASK);
    at += sizeof MASK;
    for (size_t i = 0; i < length; i++) out[at + i] = (char)(payload[i] ^ MASK[i & 3]);
    return at + length;
}
