// Numbers and times as people read them, in the reader's own language.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const number = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "short" });

/** Bytes with a binary unit: 1536 is "1.5 KiB". */
export function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${number.format(count)} ${UNITS[unit]}`;
}

/** A moment: the time of day, with the date when that is not today. */
export function moment(date) {
  const today = date.toDateString() === new Date().toDateString();
  return (today ? clock : dayAndClock).format(date);
}

/** Seconds as the two largest units: 3725 is "1h 2m". */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "m"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first === -1) return "0s";
  return parts.slice(first, first + 2).map(([count, unit]) => `${count}${unit}`).join(" ");
}
