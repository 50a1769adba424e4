// The live page: puts its parts together and keeps nothing else.

import { forgetToken, keepToken, mayConnect, needsToken, token } from "./credentials.js";
import { byId } from "./dom.js";
import { uploadLog } from "./log.js";
import { broadcast } from "./messages.js";
import { LiveSocket } from "./socket.js";
import { beacons } from "./status.js";
import { transfers } from "./transfers.js";

const PHASES = {
  connecting: () => "연결 중… connecting",
  open: () => "연결됨 live",
  waiting: ({ delay, code }) => `끊김(${code}) · ${(delay / 1000).toFixed(1)}초 후 다시 연결 reconnecting`,
  closed: ({ code, reason }) => `닫힘(${code}) ${reason}`,
  locked: () => "토큰 필요 needs a token",
  listed: () => "목록만 새로 고침 your uploads, looked up now and then",
};

function showState(output, state) {
  output.dataset.phase = state.phase;
  output.textContent = PHASES[state.phase](state);
}

const status = beacons();
const log = uploadLog({ onFinal: (id) => sending.finished(id) });
const sending = transfers({ onAccepted: () => log.soon() });

const live = new LiveSocket("ws", {
  onText: (text) => messages.add(text),
  onState(state) {
    showState(byId("socket-state"), state);
    byId("send").disabled = state.phase !== "open";
    byId("reconnect").hidden = state.phase !== "closed" && state.phase !== "waiting";
    if (state.phase !== "connecting") status.refresh();
  },
});
const messages = broadcast(live);

const feed = new LiveSocket("ws/uploads:feed", {
  onText: (text) => log.heard(text),
  onState(state) {
    showState(byId("feed-state"), state);
    // What happened while the feed was away was not heard.
    if (state.phase === "open") log.soon();
  },
});

/** Connect both sockets, or say that a token is needed first. */
function connect() {
  byId("files").disabled = !mayConnect();
  if (mayConnect()) {
    live.start();
    // Where tokens are asked for, the feed tells of everybody's uploads and is the operator's alone.
    if (needsToken) showState(byId("feed-state"), { phase: "listed" });
    else feed.start();
  } else {
    live.stop();
    feed.stop();
    showState(byId("socket-state"), { phase: "locked" });
    showState(byId("feed-state"), { phase: "locked" });
    byId("send").disabled = true;
  }
  byId("token-forget").hidden = token() === null;
  log.refresh();
}

byId("reconnect").addEventListener("click", connect);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const kept = keepToken(byId("token").value);
  byId("token-note").textContent = kept
    ? "토큰을 이 탭에 보관했습니다. Kept in this tab."
    : "JWT가 아닙니다 (점 두 개로 나뉜 세 부분). Not a JWT: three parts with dots between them.";
  if (!kept) return;
  byId("token").value = "";
  connect();
});
byId("token-forget").addEventListener("click", () => {
  forgetToken();
  connect();
});

// A token left over from a server that no longer wants one would be refused for no reason.
if (!needsToken) forgetToken();
connect();
