/**
 * What plays now, asked every second while somebody looks.
 *
 * The API shares such answers among tabs for a second, so this costs Spotify little. Between two answers the
 * progress moves by the page's own clock.
 */
import { computed, onBeforeUnmount, ref, shallowRef } from "vue";
import { ONCE, problemOf, type Problem } from "./api";
import { player as askPlayer, type Player } from "./spotify";

const PLAYING_MS = 1_000;
const STILL_MS = 2_000; // nothing moves, so a start is noticed soon enough
const TROUBLE_MS = 5_000;
const NOT_CONNECTED_MS = 30_000; // the person has to do something first
const TICK_MS = 250;

export function usePlayer() {
  const player = shallowRef<Player | null>(null);
  const known = ref(false);
  const problem = ref<Problem | null>(null);
  const now = ref(performance.now());
  let answeredAt = 0;
  let newest = 0;
  let timer = 0;

  /** Ask now, and then again and again. An answer to an older question is dropped. */
  async function poll(): Promise<void> {
    window.clearTimeout(timer);
    const mine = ++newest;
    let wait: number;
    try {
      const answer = await askPlayer(ONCE);
      if (mine !== newest) return;
      player.value = answer;
      answeredAt = now.value = performance.now();
      known.value = true;
      problem.value = null;
      wait = answer?.is_playing ? PLAYING_MS : STILL_MS;
    } catch (error) {
      if (mine !== newest) return;
      problem.value = problemOf(error);
      const least = problem.value.status === 409 ? NOT_CONNECTED_MS : TROUBLE_MS;
      wait = Math.max(least, (problem.value.retryAfter ?? 0) * 1000);
    }
    if (document.visibilityState === "visible") timer = window.setTimeout(poll, wait);
  }

  /** Show at once what a command will do; the next answer says what it did. */
  function expect(change: Partial<Player>): void {
    if (!player.value) return;
    newest++; // an answer that is under way is from before the command
    player.value = { ...player.value, progress_ms: progress.value, ...change };
    answeredAt = performance.now();
  }

  const progress = computed(() => {
    const { progress_ms, is_playing, item } = player.value ?? {};
    const since = is_playing ? Math.max(0, now.value - answeredAt) : 0;
    return Math.min((progress_ms ?? 0) + since, item?.duration_ms ?? Infinity);
  });

  function look(): void {
    if (document.visibilityState === "visible") void poll();
    else window.clearTimeout(timer);
  }

  const ticking = window.setInterval(() => (now.value = performance.now()), TICK_MS);
  document.addEventListener("visibilitychange", look);
  window.addEventListener("online", look);
  look();
  onBeforeUnmount(() => {
    newest++; // an answer that is still to come finds nobody
    window.clearTimeout(timer);
    window.clearInterval(ticking);
    document.removeEventListener("visibilitychange", look);
    window.removeEventListener("online", look);
  });

  return { player, known, problem, progress, poll, expect };
}
