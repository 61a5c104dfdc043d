/** One short message at a time, at the foot of every page: what has just been done, or came of it. */
import { ref } from "vue";

export interface Notice {
  kind: "good" | "bad";
  text: string;
}

export const notice = ref<Notice | null>(null);

const SHOWN_MS = 8_000;
let timer = 0;

export function notify(text: string, kind: Notice["kind"] = "good"): void {
  window.clearTimeout(timer);
  notice.value = { kind, text };
  // Bad news stay until they are put away, or others come.
  if (kind === "good") timer = window.setTimeout(() => (notice.value = null), SHOWN_MS);
}
