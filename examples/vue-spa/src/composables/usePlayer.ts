/**
 * What is playing, polled every second while the page is visible.
 *
 * The API shares responses among tabs for a second, so this costs Spotify little. Between two responses, the
 * page's clock moves the progress.
 */
import { computed, onBeforeUnmount, ref, shallowRef } from "vue";
import type { Problem } from "backline";
import { problemOf } from "../api";
import { player as fetchPlayer, type Player } from "../spotify";

const PLAYING_MS = 1_000;
const PAUSED_MS = 2_000;
const ERROR_MS = 5_000;
const NOT_CONNECTED_MS = 30_000; // the person has to do something first
const TICK_MS = 250;

export function usePlayer() {
  const player = shallowRef<Player | null>(null);
  const known = ref(false);
  const problem = ref<Problem | null>(null);
  const now = ref(performance.now());
  let respondedAt = 0;
  let latest = 0;
  let timer = 0;

  /** Poll now, and keep polling. A response to an older request is dropped. */
  async function poll(): Promise<void> {
    window.clearTimeout(timer);
    const request = ++latest;
    let wait: number;
    try {
      const response = await fetchPlayer({ retry: false });
      if (request !== latest) return;
      player.value = response;
      respondedAt = now.value = performance.now();
      known.value = true;
      problem.value = null;
      wait = response?.is_playing ? PLAYING_MS : PAUSED_MS;
    } catch (error) {
      if (request !== latest) return;
      problem.value = problemOf(error);
      const least = problem.value.status === 409 ? NOT_CONNECTED_MS : ERROR_MS;
      wait = Math.max(least, (problem.value.retryAfter ?? 0) * 1000);
    }
    if (document.visibilityState === "visible") timer = window.setTimeout(poll, wait);
  }

  /** Show the effect of a command at once. The next response corrects it. */
  function expect(change: Partial<Player>): void {
    if (!player.value) return;
    latest++; // a pending response predates the command
    player.value = { ...player.value, progress_ms: progress.value, ...change };
    respondedAt = performance.now();
  }

  const progress = computed(() => {
    const { progress_ms, is_playing, item } = player.value ?? {};
    const elapsed = is_playing ? Math.max(0, now.value - respondedAt) : 0;
    return Math.min((progress_ms ?? 0) + elapsed, item?.duration_ms ?? Infinity);
  });

  function onVisibilityChange(): void {
    if (document.visibilityState === "visible") void poll();
    else window.clearTimeout(timer);
  }

  const ticking = window.setInterval(() => (now.value = performance.now()), TICK_MS);
  document.addEventListener("visibilitychange", onVisibilityChange);
  window.addEventListener("online", onVisibilityChange);
  onVisibilityChange();
  onBeforeUnmount(() => {
    latest++; // drops a pending response
    window.clearTimeout(timer);
    window.clearInterval(ticking);
    document.removeEventListener("visibilitychange", onVisibilityChange);
    window.removeEventListener("online", onVisibilityChange);
  });

  return { player, known, problem, progress, poll, expect };
}
