// The broadcast: what arrives, and the form that sends.

import { byId, element } from "./dom.js";
import { moment } from "./format.js";

const KEPT = 200; // messages in the page; older ones go, and the list says so
const PAINT_EVERY = 40; // ms; a thousand messages a second are drawn 25 times, not a thousand
const LONGEST = 65_536; // bytes; the server closes the connection (1009) over a longer one

const encoder = new TextEncoder();

/** @param {{send: (text: string) => boolean}} socket */
export function broadcast(socket) {
  const list = byId("messages");
  const input = byId("message");
  const error = byId("composer-error");
  let waiting = [];
  let removed = 0;
  let paint = null;

  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value;
    if (text === "") return;
    if (encoder.encode(text).length > LONGEST) {
      error.textContent = "너무 깁니다: 64 KiB까지 보낼 수 있습니다. Too long: 64 KiB at most.";
    } else if (socket.send(text)) {
      error.textContent = "";
      input.value = "";
    } else {
      error.textContent = "연결이 끊겨 보내지 못했습니다. Not connected, not sent.";
    }
  });

  function draw() {
    paint = null;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const rows = waiting.map(({ text, at }) =>
      element("li", {}, element("span", { class: "text", text }), element("time", { datetime: at.toISOString(), text: moment(at) })),
    );
    waiting = [];
    list.append(...rows);
    list.querySelector(".note")?.remove();
    while (list.children.length > KEPT) {
      list.firstElementChild.remove();
      removed += 1;
    }
    if (removed > 0) {
      list.prepend(element("li", { class: "note", text: `이전 알림 ${removed}개는 지웠습니다 · ${removed} older ones removed` }));
    }
    // Someone who scrolled back to read is left alone.
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  return {
    /** Show one received text, exactly as the server sent it. */
    add(text) {
      waiting.push({ text, at: new Date() });
      // A hidden tab draws once a second at best: what it could not keep anyway need not wait in memory.
      if (waiting.length > KEPT) {
        waiting.shift();
        removed += 1;
      }
      paint ??= setTimeout(draw, PAINT_EVERY);
    },
  };
}
