// Who served us, and who is connected where: `GET status`, every two seconds while someone looks.

import { byId, element, flame } from "./dom.js";
import { duration } from "./format.js";
import { request } from "./http.js";

const EVERY = 2_000; // ms
const BROKER_PHASES = { connected: "open", connecting: "connecting" };

export function beacons() {
  const list = byId("replicas");
  const error = byId("status-error");
  const broker = byId("broker-state");
  const rows = new Map(); // replica -> its <li>, kept so that a refresh does not rebuild what did not change
  let timer = null;
  let asking = false;

  async function refresh() {
    if (asking || document.hidden) return;
    asking = true;
    clearTimeout(timer);
    try {
      const response = await request("status");
      const status = await response.json();
      show(status, response.headers.get("X-Bongsu-Replica") ?? status.replica);
      error.textContent = "";
    } catch (failure) {
      error.textContent = `상태를 알 수 없습니다 · No status: ${failure.message}`;
    } finally {
      asking = false;
      timer = setTimeout(refresh, EVERY);
    }
  }

  function show(status, servedBy) {
    byId("served-by").textContent = servedBy;
    byId("clients-here").textContent = status.clients;
    byId("clients-cluster").textContent = status.cluster.clients;
    broker.dataset.phase = status.ready ? BROKER_PHASES[status.broker.state] ?? "closed" : "closed";
    broker.textContent = `${status.broker.kind} · ${status.broker.state}${status.ready ? "" : " · not ready"}`;
    const replicas = [...status.cluster.replicas].sort((a, b) => a.replica.localeCompare(b.replica));
    for (const gone of [...rows.keys()].filter((name) => !replicas.some(({ replica }) => replica === name))) {
      rows.get(gone).remove();
      rows.delete(gone);
    }
    replicas.forEach((replica, index) => {
      const row = rows.get(replica.replica) ?? newRow(replica.replica);
      row.classList.toggle("answered", replica.replica === servedBy);
      row.querySelector(".uptime").textContent = `${duration(replica.uptime)}${replica.replica === servedBy ? " · 방금 응답 just answered" : ""}`;
      row.querySelector(".clients").textContent = replica.clients;
      if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
    });
    [...byId("fires").children].forEach((fire, index) => fire.classList.toggle("lit", index < replicas.length));
  }

  function newRow(name) {
    const row = element("li", {}, flame(), element("span", { class: "name", text: name }),
      element("span", { class: "uptime" }), element("span", { class: "clients", title: "연결 connections" }));
    rows.set(name, row);
    return row;
  }

  document.addEventListener("visibilitychange", refresh);
  refresh();
  return { refresh };
}
