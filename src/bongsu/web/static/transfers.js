// Sending files, a few at a time, each with its progress bar. What was interrupted goes on where it was.

import { byId, element } from "./dom.js";
import { bytes } from "./format.js";
import { TusUpload } from "./tus.js";

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
    const transfer = { file, row, upload: null };
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

  async function send(transfer) {
    const { file, row } = transfer;
    const detail = row.querySelector(".detail");
    running += 1;
    transfer.upload = new TusUpload(file, {
      onProgress(sent) {
        row.querySelector("progress").value = file.size ? sent / file.size : 1;
        detail.textContent = `${bytes(sent)} / ${bytes(file.size)}`;
      },
      onTrouble(reason) {
        detail.textContent = `${reason.message} 다시 시도하는 중 trying again…`;
      },
    });
    try {
      accept(transfer, await transfer.upload.send());
    } catch (error) {
      if (error.name !== "AbortError") failed(transfer, reasonOf(error));
    } finally {
      running -= 1;
      pump();
    }
  }

  function accept({ row }, id) {
    row.querySelector("progress").value = 1;
    row.querySelector(".detail").textContent = "파일 업로드 중...";
    buttons({ row });
    accepted.set(id, row);
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

  async function cancel(transfer) {
    const place = queue.indexOf(transfer);
    if (place !== -1) queue.splice(place, 1);
    transfer.row.remove();
    try {
      await transfer.upload?.cancel();
    } catch (failure) {
      error.textContent = `서버에서 지우지 못했습니다. It could not be removed from the server: ${failure.message}`;
    }
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

function reasonOf(error) {
  const unreadable = error.name === "NotReadableError" || error.name === "NotFoundError";
  return unreadable ? "파일을 읽을 수 없습니다. The file cannot be read." : error.message;
}
