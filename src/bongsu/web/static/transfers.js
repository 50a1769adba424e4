// Sending files: `POST upload-file/`, a few at a time, each with its progress bar.
// XMLHttpRequest, because fetch still cannot tell how much of a body has left.

import { authorization } from "./credentials.js";
import { byId, element } from "./dom.js";
import { bytes } from "./format.js";
import { ProblemError } from "./http.js";

const AT_ONCE = 2; // a browser opens six connections to one server; the page needs some of them itself
const MOST = 100; // files listed at a time

/** @param {{onAccepted: (id: string) => void}} options called with the id of each upload the server took */
export function transfers({ onAccepted }) {
  const list = byId("transfers");
  const error = byId("uploads-error");
  const drop = byId("drop");
  const input = byId("files");
  const queue = [];
  const accepted = new Map(); // id -> its <li>, until the log knows the outcome
  let running = 0;

  function add(files) {
    error.textContent = "";
    for (const file of files) {
      if (list.children.length >= MOST) {
        error.textContent = `한 번에 ${MOST}개까지 올립니다. 나머지는 받지 않았습니다. ${MOST} files at a time; the rest were not taken.`;
        break;
      }
      enqueue(file);
    }
    pump();
  }

  function enqueue(file) {
    const row = element("li", {},
      element("strong", { text: file.name }),
      element("span", { class: "buttons" }),
      element("progress", { max: "1", value: "0", "aria-label": file.name }),
      element("span", { class: "detail", text: `기다리는 중 waiting · ${bytes(file.size)}` }));
    const transfer = { file, row, request: null };
    buttons(transfer, ["취소 Cancel", () => cancel(transfer)]);
    list.append(row);
    queue.push(transfer);
  }

  function buttons({ row }, ...wanted) {
    row.querySelector(".buttons").replaceChildren(...wanted.map(([text, act]) => {
      const button = element("button", { type: "button", class: "quiet", text });
      button.addEventListener("click", act);
      return button;
    }));
  }

  function pump() {
    while (running < AT_ONCE && queue.length > 0) send(queue.shift());
  }

  function send(transfer) {
    const { file, row } = transfer;
    const request = new XMLHttpRequest();
    transfer.request = request;
    running += 1;
    request.open("POST", new URL("upload-file/", document.baseURI));
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => {
      row.querySelector("progress").value = total ? loaded / total : 0;
      row.querySelector(".detail").textContent = `${bytes(loaded)} / ${bytes(total)}`;
    };
    request.onload = () => answered(transfer, request);
    request.onerror = () => failed(transfer, "연결이 끊겼거나 파일을 읽을 수 없습니다. The connection broke, or the file cannot be read.");
    request.onloadend = () => {
      running -= 1;
      pump();
    };
    const form = new FormData();
    form.append("file", file, file.name);
    request.send(form);
  }

  function answered(transfer, request) {
    if (request.status !== 200) {
      failed(transfer, new ProblemError(request.status, request.responseText).message);
      return;
    }
    const { id, message } = JSON.parse(request.responseText);
    transfer.row.querySelector("progress").value = 1;
    transfer.row.querySelector(".detail").textContent = message;
    buttons(transfer);
    accepted.set(id, transfer.row);
    onAccepted(id);
  }

  function failed(transfer, reason) {
    const { row, file } = transfer;
    row.classList.add("failed");
    row.querySelector(".detail").textContent = reason;
    buttons(transfer,
      ["다시 시도 Retry", () => { row.remove(); add([file]); }],
      ["닫기 Dismiss", () => row.remove()]);
  }

  function cancel(transfer) {
    const place = queue.indexOf(transfer);
    if (place !== -1) queue.splice(place, 1);
    transfer.request?.abort();
    transfer.row.remove();
  }

  input.addEventListener("change", () => {
    add([...input.files]);
    // The same file chosen again must be a change again.
    input.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, () => drop.classList.add("over"));
  }
  for (const name of ["dragleave", "drop"]) {
    drop.addEventListener(name, () => drop.classList.remove("over"));
  }
  // Anywhere in the window: a file that missed the frame would replace this page otherwise.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
    const files = items.filter((item) => !item.webkitGetAsEntry()?.isDirectory).map((item) => item.getAsFile());
    add(files);
    if (files.length < items.length) error.textContent = "폴더는 올릴 수 없습니다. Folders cannot be uploaded.";
  });

  return {
    /** The log shows this upload's outcome now; its progress row has done its work. */
    finished(id) {
      accepted.get(id)?.remove();
      accepted.delete(id);
    },
  };
}
