// The upload log: `GET uploads`, drawn again when the feed has news.

import { mayConnect, token } from "./credentials.js";
import { byId, element } from "./dom.js";
import { bytes, moment } from "./format.js";
import { request } from "./http.js";

const GATHER = 150; // ms; the several events of one upload make one request
const FALLBACK = 3_000; // ms between looks while something is unfinished, should the feed be down
const FINAL = new Set(["stored", "failed", "expired"]);
const LABELS = {
  receiving: "받는 중",
  received: "받음",
  processing: "처리 중",
  stored: "저장됨",
  failed: "실패",
  expired: "만료",
};

/** @param {{onFinal: (id: string) => void}} options called, again and again, for uploads with a final state */
export function uploadLog({ onFinal }) {
  const body = byId("log").tBodies[0];
  const error = byId("log-error");
  const more = byId("log-more");
  const news = byId("uploads-news");
  const states = new Map(); // id -> last state shown, to tell what is new from what is old
  let pages = 1;
  let timer = null;
  let asking = false;
  let again = false;

  function soon(delay = GATHER) {
    clearTimeout(timer);
    timer = setTimeout(refresh, delay);
  }

  async function refresh() {
    if (!mayConnect()) return;
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    try {
      show(await read());
      error.textContent = "";
    } catch (failure) {
      error.textContent = `기록을 읽지 못했습니다 · The log could not be read: ${failure.message}`;
      soon(FALLBACK);
    } finally {
      asking = false;
      if (again) soon();
      again = false;
    }
  }

  async function read() {
    const uploads = [];
    let next = null;
    for (let page = 0; page < pages; page += 1) {
      const query = next === null ? "" : `?${new URLSearchParams({ cursor: next })}`;
      const listed = await (await request(`uploads${query}`)).json();
      uploads.push(...listed.uploads);
      next = listed.next ?? null;
      if (next === null) break;
    }
    more.hidden = next === null;
    return uploads;
  }

  function show(uploads) {
    const first = states.size === 0;
    body.replaceChildren(...uploads.map(row));
    for (const { id, state, filename } of uploads) {
      if (FINAL.has(state)) onFinal(id);
      if (!first && FINAL.has(state) && states.get(id) !== state) news.textContent = `${filename}: ${LABELS[state]} ${state}`;
    }
    states.clear();
    for (const { id, state } of uploads) states.set(id, state);
    if (uploads.some(({ state }) => !FINAL.has(state))) soon(FALLBACK);
  }

  more.addEventListener("click", () => {
    pages += 1;
    refresh();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) soon();
  });
  /** An event of the feed: `{"event": "changed" | "deleted", "upload": {"id", "state", …}}`. */
  function heard(text) {
    soon();
    const { event, upload } = JSON.parse(text);
    // Said here too: when many are on their way, an upload may have left the page of the log that is shown.
    if (event === "deleted" || FINAL.has(upload.state)) onFinal(upload.id);
  }

  return { refresh, soon, heard };
}

function row(upload) {
  const { filename, state, size, sha256, received_by: receivedBy, finished_by: finishedBy, created_at: createdAt } = upload;
  const at = new Date(createdAt);
  const name = element("td", { class: "name" }, state === "stored" ? link(upload) : filename);
  if (upload.error) name.append(element("p", { class: "error", text: upload.error }));
  return element("tr", { "data-upload": upload.id },
    name,
    element("td", {}, element("span", { class: "badge", "data-state": state, title: state, text: LABELS[state] ?? state })),
    element("td", { class: "size", text: size === null ? "–" : bytes(size) }),
    element("td", { class: "hash", title: sha256 ?? undefined, text: sha256 ? `${sha256.slice(0, 12)}…` : "–" }),
    element("td", { class: "path", text: finishedBy && finishedBy !== receivedBy ? `${receivedBy} → ${finishedBy}` : receivedBy ?? "–" }),
    element("td", { class: "time" }, element("time", { datetime: at.toISOString(), text: moment(at) })));
}

function link({ id, filename }) {
  const path = `uploads/${encodeURIComponent(id)}/content`;
  const anchor = element("a", { href: path, download: filename, text: filename });
  // A link cannot carry a header and a token must not be in an address: fetched, then handed over as a file.
  anchor.addEventListener("click", async (event) => {
    if (token() === null) return;
    event.preventDefault();
    try {
      // No deadline: a large file takes as long as it takes.
      const content = await (await request(path, { signal: null })).blob();
      const address = URL.createObjectURL(content);
      element("a", { href: address, download: filename }).click();
      URL.revokeObjectURL(address);
    } catch (failure) {
      byId("log-error").textContent = failure.message;
    }
  });
  return anchor;
}
