// The connection token, where one is needed: kept for this tab, sent in headers and subprotocols only.
// Never in an address: addresses end up in logs, histories and referrers.

const KEY = "bongsu.token";
const JWT = /^[\w-]+\.[\w-]+\.[\w-]+$/;

export const needsToken = document.documentElement.dataset.access === "token";

export function token() {
  return sessionStorage.getItem(KEY);
}

/** Keep a pasted token. Returns false, keeping nothing, when it does not look like a JWT. */
export function keepToken(pasted) {
  const trimmed = pasted.trim();
  // Anything else could not be sent as a subprotocol: the WebSocket constructor would throw.
  if (!JWT.test(trimmed)) return false;
  sessionStorage.setItem(KEY, trimmed);
  return true;
}

export function forgetToken() {
  sessionStorage.removeItem(KEY);
}

/** May this page talk to the server at all? */
export function mayConnect() {
  return !needsToken || token() !== null;
}

/** Headers that carry the token over HTTP. */
export function authorization() {
  const kept = token();
  return kept ? { Authorization: `Bearer ${kept}` } : {};
}

/** Subprotocols that carry the token in a WebSocket handshake; the server answers with "bongsu". */
export function subprotocols() {
  const kept = token();
  return kept ? ["bongsu", `bongsu.token.${kept}`] : [];
}
