// Requests to our own server, whose errors are RFC 9457 problem documents.

import { authorization } from "./credentials.js";

/** What the server had to say about a request it refused; `message` is for people. */
export class ProblemError extends Error {
  constructor(status, text) {
    super(detailOf(text) ?? `HTTP ${status}`);
    this.status = status;
  }
}

function detailOf(text) {
  try {
    const problem = JSON.parse(text);
    return problem.detail ?? problem.title ?? null;
  } catch {
    // A proxy in between answers in HTML: the status alone is what can be shown then.
    return null;
  }
}

const DEADLINE = 10_000; // ms; a request that takes longer is as good as failed for a page people look at

/**
 * Fetch an address relative to the page, with the token where there is one.
 * @throws {ProblemError} when the server refuses
 */
export async function request(path, options = {}) {
  const response = await fetch(new URL(path, document.baseURI), {
    cache: "no-store",
    signal: AbortSignal.timeout(DEADLINE),
    ...options,
    headers: { ...authorization(), ...options.headers },
  });
  if (!response.ok) throw new ProblemError(response.status, await response.text());
  return response;
}
