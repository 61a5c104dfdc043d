/** One short message at a time, at the bottom of every page. */
import { ref } from "vue";

export interface Toast {
  kind: "success" | "error";
  text: string;
}

export const toast = ref<Toast | null>(null);

const SHOWN_MS = 8_000;
let timer = 0;

export function showToast(text: string, kind: Toast["kind"] = "success"): void {
  window.clearTimeout(timer);
  toast.value = { kind, text };
  // Errors stay until they are dismissed or replaced.
  if (kind === "success") timer = window.setTimeout(() => (toast.value = null), SHOWN_MS);
}
